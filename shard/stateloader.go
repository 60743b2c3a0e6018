package shard

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Limits of the state loader.
const (
	// stateAttempt is how long a like waits for the home of its key before it fails, and then for the ledger before it is
	// taken provisionally: much longer than either takes that works, and short for somebody who waits for the answer.
	stateAttempt = time.Second
	// statePause is how long after a failure the ledger is not asked.
	statePause      = time.Second
	maxStateBatch   = 4_000
	maxQueuedStates = 65_536
	// noSnapshot is the watermark of a state that is taken for the last one without a look at the ledger.
	noSnapshot = math.MaxInt64
)

// stateLoader finds out what likes are of which the scripts may know nothing, and sends them. Likes that arrive
// meanwhile share the next query to the ledger.
type stateLoader struct {
	scripts Scripts
	ledger  Ledger
	submit  func([]*job) error
	// hurry tells the lane of a standalone Redis that no more likes come before these are done.
	hurry   func()
	pending func(ctx context.Context, shard int) (PendingWindows, error)
	clock   *clock
	shards  int
	cluster bool
	metrics *Metrics
	log     *slog.Logger
	queue   *groupcommit.Queue[*stateLoad]
	// until is when the ledger is asked again after it has failed, zero while it works. Used by run alone.
	until time.Time
}

// stateLoad is a like whose state is to be found out.
type stateLoad struct {
	job *job
	// first says that the script has not been asked. It is then if the ledger cannot be, and the ledger is not asked
	// again for such likes alone when it has failed.
	first bool
	// asksID says that the like may have been done by the same id at the home of its key.
	asksID bool

	asked   bool      // the home of a pair that is away was asked for it
	drained bool      // or it need not be, as the ledger has all that the home knows of a pair that is away
	home    PairValue // what the home knows of it
	claimed ClaimValue
	micros  int64 // of the home, after it was found that the id is claimed
	err     error // of the home
}

func newStateLoader(s *Store, ledger Ledger) *stateLoader {
	l := &stateLoader{
		scripts: s.scripts, ledger: ledger, submit: s.submit, pending: s.pending, clock: s.clock, shards: s.cfg.Shards,
		cluster: s.cfg.Cluster, metrics: s.metrics, log: s.cfg.Logger, hurry: func() { s.writers[0].queue.Hurry() },
	}
	l.queue = groupcommit.New(groupcommit.Config[*stateLoad]{MaxQueue: maxQueuedStates, MaxBatch: maxStateBatch}, l.run)
	return l
}

// run finds out what is known of likes and sends them. On a standalone Redis it waits for them to be done: so the
// next likes share a query and a script, rather than to be halved between the two, and none is answered later.
func (l *stateLoader) run(ctx context.Context, loads []*stateLoad) {
	l.find(ctx, loads)
	var last *job
	for _, load := range loads {
		j := load.job
		if j.taken.Load() {
			continue // by its caller, who left, or by settle
		}
		if err := l.submit([]*job{j}); err != nil {
			settle(j, err)
			continue
		}
		last = j
	}
	if last == nil || l.cluster {
		return
	}
	l.hurry()
	select {
	case <-last.finished:
	case <-ctx.Done():
	}
}

// settle finishes a job that was not sent, unless its caller has left.
func settle(j *job, err error) {
	if j.taken.CompareAndSwap(false, true) {
		j.finish(err)
	}
}

// find asks the homes of pairs that are away, and then the ledger. In this order, a state that leaves a home's window
// meanwhile is found in the ledger. It settles the likes that need not or must not be sent. If the ledger cannot be
// asked, and the script has been, a like is what its home knew last, though the ledger may have a later state from the
// pair's place, or must be supposed; but not one that has a moment, since the ledger may know of a later one.
func (l *stateLoader) find(ctx context.Context, loads []*stateLoad) {
	l.askHomes(ctx, loads, !l.until.IsZero())
	snapshot, err := l.askLedger(ctx, loads)
	if err != nil {
		l.askHomes(ctx, loads, true) // those that were left out
	}
	for i, load := range loads {
		p := &load.job.parts[0]
		switch {
		case load.err != nil:
			settle(load.job, load.err)
		case load.claimed.Known:
			l.doneAtHome(load)
		case err == nil:
			p.known = newest(load.home, snapshot.States[i])
			p.known.Watermark = snapshot.Watermarks[p.shard]
		case load.first:
		case load.job.change.SetAt != 0:
			settle(load.job, fmt.Errorf("%w: %w", counter.ErrUnavailable, err))
		case load.home.Known:
			p.known = KnownLike{Source: LikeLoaded, PendingLike: load.home.PendingLike, Watermark: noSnapshot}
			l.metrics.supposedLikes.Inc()
		default:
			p.known = KnownLike{Source: LikeSupposed}
			l.metrics.supposedLikes.Inc()
		}
	}
}

// doneAtHome answers a like that was done at its key's home before the key was spread.
func (l *stateLoader) doneAtHome(load *stateLoad) {
	j, p := load.job, &load.job.parts[0]
	if !j.taken.CompareAndSwap(false, true) {
		return
	}
	changed, same := p.id.repeated(load.claimed.Value, j.change.Like)
	if !same {
		j.finish(counter.ErrRequestIDReused)
		return
	}
	p.outcome, p.changed = counter.Duplicate, changed
	j.micros = load.micros
	j.finish(nil)
}

// newest is what the home, which may know nothing, and the ledger make of a pair.
func newest(home PairValue, ledger counter.LikeState) KnownLike {
	known := KnownLike{Source: LikeLoaded}
	if !ledger.At.IsZero() {
		known.Liked, known.Micros = ledger.Liked, ledger.At.UnixMicro()
		known.Since = known.Micros
	}
	if home.Known && home.Micros >= known.Micros {
		known.PendingLike = home.PendingLike
	}
	return known
}

// askLedger reads the pairs' states, unless the ledger has failed just now, or has failed and the script may have the
// answer.
func (l *stateLoader) askLedger(ctx context.Context, loads []*stateLoad) (LedgerLikes, error) {
	isSecond := func(load *stateLoad) bool { return !load.first }
	if time.Now().Before(l.until) || !l.until.IsZero() && !slices.ContainsFunc(loads, isSecond) {
		return LedgerLikes{}, errLedgerPause
	}
	pairs := make([]counter.Pair, len(loads))
	for i, load := range loads {
		pairs[i] = load.job.change.Pair()
	}
	// A timeout of its own, or a slow home would be taken for a ledger that has failed.
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	started := time.Now()
	snapshot, err := l.ledger.Likes(ctx, pairs)
	if err == nil && (len(snapshot.Watermarks) != l.shards || len(snapshot.States) != len(pairs)) {
		err = errLedgerAnswer
	}
	l.metrics.loadLikes(started, len(pairs), err)
	switch {
	case err != nil:
		if l.until.IsZero() {
			l.log.ErrorContext(ctx, "the ledger cannot be asked what likes are: they are taken provisionally", "error", err)
		}
		l.until = time.Now().Add(statePause)
	case !l.until.IsZero():
		l.until = time.Time{}
		l.log.InfoContext(ctx, "the ledger can be asked what likes are again")
	}
	return snapshot, err
}
