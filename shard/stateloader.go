package shard

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
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
	// A round has a price of its own, as it asks Redis and the ledger and then sends a script that looks at each shard. So a server
	// that gets more than 4,000 likes a second lets 64 of them gather.
	gatherStates = 64
	// noSnapshot is the watermark of a state that is taken for the last one without a look at the ledger.
	noSnapshot = math.MaxInt64
)

// stateLoader finds out what likes are of which the scripts may know nothing, and sends them. Likes that arrive
// meanwhile share the next query to the ledger.
type stateLoader struct {
	scripts Scripts
	ledger  Ledger
	submit  func([]*job) error
	// flush waits until the lane of a standalone Redis has settled its likes, and tells it that no more come before.
	flush   func(ctx context.Context)
	pending func(ctx context.Context, shard int) (PendingWindows, error)
	clock   *clock
	shards  int
	cluster bool
	metrics *Metrics
	log     *slog.Logger
	likers  *likers
	queue   *groupcommit.Queue[*stateLoad]
	pool    sync.Pool // of *stateLoad
	// until is when the ledger is asked again after it has failed, zero while it works. Behind are the homes of which the ledger
	// did not have all, when they were asked last. Used by run alone.
	until  time.Time
	behind []bool
}

// stateLoad is a like whose state is to be found out.
type stateLoad struct {
	// job is nil once it was settled.
	job *job
	// first says that the script has not been asked. It is then if the ledger cannot be, and the ledger is not asked
	// again for such likes alone when it has failed.
	first bool
	// asksID says that the like may have been done by the same id at the home of its key.
	asksID bool

	home    int        // of the key
	behind  bool       // the home of a pair that is away is asked for it before the ledger
	asked   bool       // the home of a pair that is away was asked for it
	atHome  PairValue  // what the home knows of it then
	marked  int64      // the home's last window that may have something of it
	claimed ClaimValue // of the home
	micros  int64      // of the home, after it was found that the id is claimed
	err     error      // of the home

	ledger *ledgerAnswer
	at     int // where the answer has it
}

// ledgerAnswer is what the ledger has said of likes, or why it has not.
type ledgerAnswer struct {
	LedgerLikes
	err error
}

// drained reports whether the ledger had all that the home of a pair that is away knows of it.
func (l *stateLoad) drained() bool {
	return l.ledger.err == nil && l.marked <= l.ledger.Watermarks[l.home]
}

func newStateLoader(s *Store, ledger Ledger) *stateLoader {
	l := &stateLoader{
		scripts: s.scripts, ledger: ledger, submit: s.submit, pending: s.pending, clock: s.clock, shards: s.cfg.Shards,
		cluster: s.cfg.Cluster, behind: make([]bool, s.cfg.Shards), metrics: s.metrics, log: s.cfg.Logger,
		flush: func(ctx context.Context) { s.writers[0].queue.Flush(ctx) }, likers: newLikers(s, ledger),
	}
	l.queue = groupcommit.New(groupcommit.Config[*stateLoad]{
		MaxQueue: maxQueuedStates, MaxBatch: maxStateBatch, Yield: true,
		Gather: groupcommit.Gather{Enough: gatherStates, Wait: gatherWait},
	}, l.run)
	return l
}

// run finds out what is known of likes and sends them. On a standalone Redis it waits for them to be done: so the
// next likes share a query and a script, rather than to be halved between the two, and none is answered later.
func (l *stateLoader) run(ctx context.Context, loads []*stateLoad) {
	l.find(ctx, loads)
	sent := false
	for _, load := range loads {
		if load.job == nil || load.job.taken.Load() {
			continue // settled, or its caller has left
		}
		if err := l.submit([]*job{load.job}); err != nil {
			load.settle(err)
			continue
		}
		sent = true
	}
	for _, load := range loads {
		*load = stateLoad{}
		l.pool.Put(load)
	}
	if sent && !l.cluster {
		l.flush(ctx)
	}
}

// add has a like sent when it is known what it is of which the script may know nothing.
func (l *stateLoader) add(j *job, first, asksID bool) error {
	load, ok := l.pool.Get().(*stateLoad)
	if !ok {
		load = &stateLoad{}
	}
	load.job, load.first, load.asksID = j, first, asksID
	return l.queue.Add(load)
}

// settle finishes a job that was not sent, unless its caller has left. It may be used for another change from then on.
func (l *stateLoad) settle(err error) {
	if l.job.taken.CompareAndSwap(false, true) {
		l.job.finish(err)
	}
	l.job = nil
}

// find asks the homes of pairs that are away and the ledger, and settles the likes that need not or must not be sent. If the ledger
// cannot be asked, and the script has been, a like is what its home knew last, though the ledger may have a later state from the
// pair's place, or must be supposed; but not one that has a moment, since the ledger may know of a later one.
func (l *stateLoader) find(ctx context.Context, loads []*stateLoad) {
	l.ask(ctx, loads)
	for _, load := range loads {
		p := &load.job.parts[0]
		switch {
		case load.err != nil:
			load.settle(load.err)
		case load.claimed.Known:
			load.doneAtHome()
		case load.ledger.err == nil:
			p.known = newest(load.atHome, load.ledger.States[load.at])
			p.known.Watermark = load.ledger.Watermarks[p.shard]
		case load.first:
		case load.job.change.SetAt != 0:
			load.settle(fmt.Errorf("%w: %w", counter.ErrUnavailable, load.ledger.err))
		case load.atHome.Known:
			p.known = KnownLike{Source: LikeLoaded, PendingLike: load.atHome.PendingLike, Watermark: noSnapshot}
			l.metrics.supposedLikes.Inc()
		default:
			p.known = KnownLike{Source: LikeSupposed}
			l.metrics.supposedLikes.Inc()
		}
	}
}

// ask asks homes and the ledger, unless it is remembered what that would say: both at once, as each takes its time. By its watermark
// the ledger says itself whether it had what a home knows of a pair, whichever answered first. If it did not, the home is asked for
// the pair, and the ledger after that: so a state that leaves the home's windows meanwhile is found in the ledger.
func (l *stateLoader) ask(ctx context.Context, loads []*stateLoad) {
	var away []*stateLoad
	behind := false
	for _, load := range loads {
		load.home = Home(load.job.change.Entries[0].Key, l.shards)
		if load.home != load.job.parts[0].shard {
			away = append(away, load)
			load.behind = l.behind[load.home]
			behind = behind || load.behind
		}
	}
	var asking sync.WaitGroup
	if len(away) > 0 {
		asking.Go(func() { l.askHomes(ctx, away) })
	}
	if behind {
		asking.Wait()
	}
	rest := l.likers.answer(loads)
	l.askLedger(ctx, rest)
	l.likers.note(rest)
	asking.Wait()
	clear(l.behind)
	var left []*stateLoad
	for _, load := range away {
		if load.err != nil || load.drained() {
			continue
		}
		l.behind[load.home] = true
		l.likers.forget(load.job.change.Entries[0].Key)
		if !load.asked {
			left = append(left, load)
		}
	}
	if len(left) > 0 {
		l.askPairs(ctx, left)
		l.askLedger(ctx, left)
	}
}

// doneAtHome answers a like that was done at its key's home before the key was spread.
func (l *stateLoad) doneAtHome() {
	p := &l.job.parts[0]
	changed, same := p.id.repeated(l.claimed.Value, l.job.change.Like)
	if !same {
		l.settle(counter.ErrRequestIDReused)
		return
	}
	p.outcome, p.changed, l.job.micros = counter.Duplicate, changed, l.micros
	l.settle(nil)
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
func (l *stateLoader) askLedger(ctx context.Context, loads []*stateLoad) {
	if len(loads) == 0 {
		return
	}
	answer := &ledgerAnswer{}
	for i, load := range loads {
		load.ledger, load.at = answer, i
	}
	isSecond := func(load *stateLoad) bool { return !load.first }
	if time.Now().Before(l.until) || !l.until.IsZero() && !slices.ContainsFunc(loads, isSecond) {
		answer.err = errLedgerPause
		return
	}
	pairs := make([]counter.Pair, len(loads))
	for i, load := range loads {
		pairs[i] = load.job.change.Pair()
	}
	// A timeout of its own, or a slow home would be taken for a ledger that has failed.
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	started := time.Now()
	answer.LedgerLikes, answer.err = l.ledger.Likes(ctx, pairs)
	if answer.err == nil && (len(answer.Watermarks) != l.shards || len(answer.States) != len(pairs)) {
		answer.err = errLedgerAnswer
	}
	l.metrics.loadLikes(started, len(pairs), answer.err)
	switch {
	case answer.err != nil:
		if l.until.IsZero() {
			l.log.ErrorContext(ctx, "the ledger cannot be asked what likes are: they are taken provisionally", "error", answer.err)
		}
		l.until = time.Now().Add(statePause)
	case !l.until.IsZero():
		l.until = time.Time{}
		l.log.InfoContext(ctx, "the ledger can be asked what likes are again")
	}
}
