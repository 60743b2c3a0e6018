package shard

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/plusone-dev/plusone/internal/counter"
)

// askHomes asks the homes of pairs whose keys are spread what they know of them, and of their ids. It leaves out pairs of
// which the ledger knows that as well, unless the ledger is known to have failed, and homes that were asked before.
func (l *stateLoader) askHomes(ctx context.Context, loads []*stateLoad, failed bool) {
	var away []*stateLoad
	for _, load := range loads {
		pair := load.job.change.Pair()
		if Home(pair.Key, l.shards) != load.job.parts[0].shard && !load.asked {
			away = append(away, load)
		}
	}
	if len(away) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stateAttempt)
	defer cancel()
	if !failed {
		l.askDrained(ctx, away)
	}
	var pairs, ids pairGroups[*stateLoad]
	for _, load := range away {
		load.asked = load.err == nil && (failed || !load.drained)
		pair := load.job.change.Pair()
		home := Home(pair.Key, l.shards)
		if load.asked {
			pairs.add(home, pair, load)
		}
		if load.err == nil && load.asksID {
			ids.add(home, pair, load)
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
		values, errs = l.lookUp(ctx, pairs.groups)
	}
	asking.Wait()
	for i, asked := range pairs.asked {
		for k, load := range asked {
			if load.err = errs[i]; load.err == nil {
				load.home = values[i][k]
			}
		}
	}
	for i, asked := range ids.asked {
		for _, load := range asked {
			load.err = cmp.Or(claimErrs[i], load.err)
		}
	}
}

// askDrained notes of which pairs that are away the ledger has all that their homes know. A home that does not know the
// marker by which a pair is away may have gone back in time and have taken likes of it since.
func (l *stateLoader) askDrained(ctx context.Context, away []*stateLoad) {
	type place struct{ group, key int }
	places := make(map[string]place, 1) // of the keys
	groups := make(map[int]int, 1)      // of the homes
	var homes []KeyGroup
	for _, load := range away {
		key := load.job.change.Entries[0].Key
		if _, there := places[key]; there {
			continue
		}
		home := Home(key, l.shards)
		at, there := groups[home]
		if !there {
			at = len(homes)
			groups[home] = at
			homes = append(homes, KeyGroup{Shard: home})
		}
		places[key] = place{at, len(homes[at].Keys)}
		homes[at].Keys = append(homes[at].Keys, key)
	}
	replies, errs := askGroups(ctx, l.cluster, homes, func(ctx context.Context, homes []KeyGroup) ([]HomeReply, error) {
		return tryRead(ctx, l.metrics, scriptHomes, func(ctx context.Context) ([]HomeReply, error) { return l.scripts.Homes(ctx, homes) })
	})
	for _, load := range away {
		at := places[load.job.change.Entries[0].Key]
		if load.err = errs[at.group]; load.err == nil {
			reply := replies[at.group]
			load.drained = reply.Drained && reply.Markers[at.key] == load.job.parts[0].spread
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
