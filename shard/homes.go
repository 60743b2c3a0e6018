package shard

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"

	"github.com/plusone-dev/plusone/internal/counter"
)

// askHomes asks the homes of pairs that are away what they know of their ids, by when the ledger has what they know of the
// pairs, and, if it did not have that yet when it was asked last, for the pairs themselves.
func (l *stateLoader) askHomes(ctx context.Context, away []*stateLoad) {
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	var pairs, ids pairGroups[*stateLoad]
	for _, load := range away {
		if load.behind {
			pairs.add(load.home, load.job.change.Pair(), load)
		}
		if load.asksID {
			ids.add(load.home, load.job.change.Pair(), load)
		}
	}
	var asking sync.WaitGroup
	claimErrs := make([]error, len(ids.groups))
	for i, asked := range ids.asked {
		asking.Go(func() { claimErrs[i] = l.askClaims(ctx, ids.groups[i].Shard, asked) })
	}
	var values [][]PairValue
	var errs []error
	if len(pairs.groups) > 0 {
		asking.Go(func() { values, errs = l.lookUp(ctx, pairs.groups) })
	}
	l.askMarked(ctx, away)
	asking.Wait()
	takeOverHomes(&pairs, values, errs)
	for i, asked := range ids.asked {
		for _, load := range asked {
			load.err = cmp.Or(claimErrs[i], load.err)
		}
	}
}

// askPairs asks the homes of pairs that are away for the pairs.
func (l *stateLoader) askPairs(ctx context.Context, away []*stateLoad) {
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	var pairs pairGroups[*stateLoad]
	for _, load := range away {
		pairs.add(load.home, load.job.change.Pair(), load)
	}
	values, errs := l.lookUp(ctx, pairs.groups)
	takeOverHomes(&pairs, values, errs)
}

// takeOverHomes takes over what homes have answered about pairs.
func takeOverHomes(pairs *pairGroups[*stateLoad], values [][]PairValue, errs []error) {
	for i, asked := range pairs.asked {
		for k, load := range asked {
			load.asked = true
			if errs[i] != nil {
				load.err = errs[i]
			} else {
				load.atHome = values[i][k]
			}
		}
	}
}

// askMarked notes by which window the homes of pairs that are away have no more to do with them. A home that does not know the
// marker by which a pair is away may have gone back in time and have taken likes of it since.
func (l *stateLoader) askMarked(ctx context.Context, away []*stateLoad) {
	type place struct{ group, key int }
	places := make(map[string]place, 1) // of the keys
	groups := make(map[int]int, 1)      // of the homes
	var homes []KeyGroup
	for _, load := range away {
		key := load.job.change.Entries[0].Key
		if _, there := places[key]; there {
			continue
		}
		at, there := groups[load.home]
		if !there {
			at = len(homes)
			groups[load.home] = at
			homes = append(homes, KeyGroup{Shard: load.home})
		}
		places[key] = place{at, len(homes[at].Keys)}
		homes[at].Keys = append(homes[at].Keys, key)
	}
	replies, errs := askGroups(ctx, l.cluster, homes, func(ctx context.Context, homes []KeyGroup) ([]HomeReply, error) {
		return tryRead(ctx, l.metrics, scriptHomes, func(ctx context.Context) ([]HomeReply, error) { return l.scripts.Homes(ctx, homes) })
	})
	for _, load := range away {
		at := places[load.job.change.Entries[0].Key]
		load.marked = math.MaxInt64
		if load.err = errs[at.group]; load.err != nil {
			continue
		}
		if reply := replies[at.group]; reply.Markers[at.key] == load.job.parts[0].spread {
			load.marked = reply.Marked
		}
	}
}

// askClaims asks the home of spread keys for the ids of likes.
func (l *stateLoader) askClaims(ctx context.Context, home int, loads []*stateLoad) error {
	ids := make([]counter.RequestID, len(loads))
	for i, load := range loads {
		ids[i] = load.job.change.RequestID
	}
	now := l.clock.milliseconds()
	if now == 0 { // a server may know of markers before it has heard of the time
		pending, err := l.pending(ctx, home)
		if err != nil {
			return err
		}
		now = pending.Micros / 1000
	}
	claims, err := l.scripts.Claimed(ctx, home, ids, now)
	if err != nil {
		return readError(err)
	}
	var found PendingWindows
	if slices.ContainsFunc(claims, func(c ClaimValue) bool { return c.Known }) {
		// The clock here may be late, and a moment from before a like was set does not stand for it.
		if found, err = l.pending(ctx, home); err != nil {
			return err
		}
	}
	for i, load := range loads {
		load.claimed, load.micros = claims[i], found.Micros
	}
	return nil
}

// lookUp asks the shards what they know of pairs. Each group has its values or its error.
func (l *stateLoader) lookUp(ctx context.Context, groups []PairGroup) ([][]PairValue, []error) {
	return askGroups(ctx, l.cluster, groups, func(ctx context.Context, groups []PairGroup) ([][]PairValue, error) {
		return tryRead(ctx, l.metrics, scriptLikes, func(ctx context.Context) ([][]PairValue, error) { return l.scripts.Likes(ctx, groups) })
	})
}

// askGroups asks shards: all with one script, or each with its own in a cluster. Each group has its answer or its error.
func askGroups[G, A any](ctx context.Context, cluster bool, groups []G, ask func(context.Context, []G) ([]A, error)) ([]A, []error) {
	errs := make([]error, len(groups))
	if !cluster {
		answers, err := ask(ctx, groups)
		for i := range errs {
			errs[i] = err
		}
		return answers, errs
	}
	answers := make([]A, len(groups))
	var asking sync.WaitGroup
	for i := range groups {
		asking.Go(func() {
			answer, err := ask(ctx, groups[i:i+1])
			if errs[i] = err; err == nil {
				answers[i] = answer[0]
			}
		})
	}
	asking.Wait()
	return answers, errs
}
