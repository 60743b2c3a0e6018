package shard

import (
	"cmp"
	"context"
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
	// stateAttempt is how long a like waits for the ledger before it is taken provisionally: much longer than a
	// ledger takes that works, and short for somebody who waits for the answer.
	stateAttempt = time.Second
	// statePause is how long after a failure the ledger is not asked.
	statePause      = time.Second
	maxStateBatch   = 4_000
	maxQueuedStates = 65_536
)

// stateLoader finds out what likes are of which the scripts know nothing. Loads that arrive while one is under way
// share the next query to the ledger.
type stateLoader struct {
	scripts Scripts
	ledger  Ledger
	shards  int
	cluster bool
	metrics *Metrics
	log     *slog.Logger
	queue   *groupcommit.Queue[*stateLoad]
	// until is when the ledger is asked again after it has failed, zero while it works. Used by run alone.
	until time.Time
}

// stateLoad is a load of the state of a pair whose place is the shard. The results are set before done is closed.
type stateLoad struct {
	pair  counter.Pair
	shard int
	// first says that the script has not been asked. It is then if the ledger cannot be, and the ledger is not asked
	// again for such loads alone when it has failed.
	first bool
	// id, unless it is zero, is one for which the home is asked too, at the time now (Scripts.Claimed).
	id  counter.RequestID
	now int64

	home    PairValue // what the home knows of a pair that is away
	claimed ClaimValue
	known   KnownLike
	err     error
	done    chan struct{}
}

func newStateLoader(s *Store, ledger Ledger) *stateLoader {
	l := &stateLoader{
		scripts: s.scripts, ledger: ledger, shards: s.cfg.Shards, cluster: s.cfg.Cluster, metrics: s.metrics, log: s.cfg.Logger,
	}
	l.queue = groupcommit.New(groupcommit.Config[*stateLoad]{MaxQueue: maxQueuedStates, MaxBatch: maxStateBatch}, l.run)
	return l
}

// load finds out what is known of a pair outside of its shard, and that it must be supposed if the ledger cannot be
// asked.
func (l *stateLoader) load(ctx context.Context, load *stateLoad) error {
	load.done = make(chan struct{})
	if err := l.queue.Add(load); err != nil {
		return queueError(err)
	}
	select {
	case <-load.done:
		return load.err
	case <-ctx.Done():
		return callerLeft(context.Cause(ctx))
	}
}

// run asks the homes of pairs that are away, and then the ledger. In this order, a state that leaves a home's
// window meanwhile is found in the ledger.
func (l *stateLoader) run(ctx context.Context, loads []*stateLoad) {
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	l.askHomes(ctx, loads)
	snapshot, err := l.askLedger(ctx, loads)
	for i, load := range loads {
		switch {
		case load.err != nil:
		case err == nil:
			load.known = newest(load.home, snapshot.States[i])
			load.known.Watermark = snapshot.Watermarks[load.shard]
		case load.home.Known:
			load.known = KnownLike{Source: LikeLoaded, PendingLike: load.home.PendingLike, Watermark: math.MaxInt64}
		case load.first:
			load.known = KnownLike{}
		default:
			load.known = KnownLike{Source: LikeSupposed}
			l.metrics.supposedLikes.Inc()
		}
		close(load.done)
	}
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

// askHomes asks the homes of pairs whose keys are spread what they know of them, and of their ids.
func (l *stateLoader) askHomes(ctx context.Context, loads []*stateLoad) {
	var away pairGroups[*stateLoad]
	for _, load := range loads {
		if home := Home(load.pair.Key, l.shards); home != load.shard {
			away.add(home, load.pair, load)
		}
	}
	if len(away.groups) == 0 {
		return
	}
	claimErrs := make([]error, len(away.groups))
	var asking sync.WaitGroup
	for i := range away.groups {
		asking.Go(func() { claimErrs[i] = l.askClaims(ctx, away.groups[i].Shard, away.asked[i]) })
	}
	values, err := l.lookUp(ctx, away.groups)
	asking.Wait()
	for i, asked := range away.asked {
		for k, load := range asked {
			if load.err = cmp.Or(claimErrs[i], err); err == nil {
				load.home = values[i][k]
			}
		}
	}
}

// askClaims asks the home of spread keys for the ids of likes.
func (l *stateLoader) askClaims(ctx context.Context, home int, loads []*stateLoad) error {
	var ids []counter.RequestID
	var asked []*stateLoad
	for _, load := range loads {
		if !load.id.IsZero() {
			ids, asked = append(ids, load.id), append(asked, load)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	claims, err := l.scripts.Claimed(ctx, home, ids, asked[0].now)
	if err != nil {
		return readError(err)
	}
	for i, load := range asked {
		load.claimed = claims[i]
	}
	return nil
}

// lookUp asks the shards what they know of pairs: all with one script, or each with its own in a cluster.
func (l *stateLoader) lookUp(ctx context.Context, groups []PairGroup) ([][]PairValue, error) {
	if len(groups) == 0 {
		return nil, nil
	}
	if !l.cluster {
		return l.lookUpOnce(ctx, groups)
	}
	values, errs := make([][]PairValue, len(groups)), make([]error, len(groups))
	var asking sync.WaitGroup
	for i := range groups {
		asking.Go(func() {
			value, err := l.lookUpOnce(ctx, groups[i:i+1])
			if errs[i] = err; err == nil {
				values[i] = value[0]
			}
		})
	}
	asking.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (l *stateLoader) lookUpOnce(ctx context.Context, groups []PairGroup) ([][]PairValue, error) {
	return tryRead(ctx, l.metrics, "likes", func(ctx context.Context) ([][]PairValue, error) {
		return l.scripts.Likes(ctx, groups)
	})
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
		pairs[i] = load.pair
	}
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
