package shard_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// stalledScripts have a shard that does not answer questions about likes, as one whose master hangs.
type stalledScripts struct {
	shard.Scripts
	stalled int
}

func (s *stalledScripts) Likes(ctx context.Context, groups []shard.PairGroup) ([][]shard.PairValue, error) {
	if slices.ContainsFunc(groups, func(g shard.PairGroup) bool { return g.Shard == s.stalled }) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Scripts.Likes(ctx, groups)
}

// likeOf likes a key.
func likeOf(key, actor string) counter.Change {
	return counter.Change{Entries: []counter.Entry{{Key: key}}, Actor: actor, Like: counter.SetLiked}
}

// nameAt is a key whose home is the shard, of the four of likeTrips, or an actor whose place it is.
func nameAt(n int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprint("name-", i); shard.Home(name, 4) == n {
			return name
		}
	}
}

// TestStalledHomeFailsItsOwnLikes: in a cluster, a home that does not answer costs the likes that need it, and neither
// those of other homes nor those that only the ledger is asked about.
func TestStalledHomeFailsItsOwnLikes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		c.cluster = true
		s := c.store(t)
		dead, healthy, cold := nameAt(0), nameAt(1), nameAt(2)
		for n, key := range []string{dead, healthy} {
			_, err := c.Spread(t.Context(), n, []string{key}, 0)
			must(t, err)
			value(t, s, key) // from which the store learns the marker
		}
		old := map[counter.Pair]shard.PendingLike{{Key: cold, Actor: "al"}: {Liked: true, Micros: 1, Since: 1}}
		_, err := c.Apply(t.Context(), flush.Window{Shard: 2, ID: 1, WindowPart: shard.WindowPart{Likes: old}})
		must(t, err)
		c.Scripts = &stalledScripts{c.Scripts, 0}
		actor := nameAt(3) // away from both homes

		var callers sync.WaitGroup
		apply := func(change counter.Change, want string) {
			callers.Go(func() {
				r, err := s.Apply(t.Context(), change)
				got := fmt.Sprintf("changed %t, provisional %t, failed %t", r.Changed, r.Provisional, err != nil)
				equal(t, change.Entries[0].Key+" of "+change.Actor, got, want)
			})
			synctest.Wait()
		}
		const failed = "changed false, provisional false, failed true"
		apply(likeOf(dead, actor), failed)
		callers.Wait()
		apply(likeOf(cold, "al"), "changed false, provisional false, failed false")
		callers.Wait()
		for range 2 { // the second is in one batch with the next like
			apply(likeOf(dead, actor), failed)
		}
		apply(likeOf(healthy, actor), "changed true, provisional false, failed false")
		callers.Wait()
	})
}

// homes are scripts whose answers about homes are changed, and which count the homes that are asked about pairs.
type homes struct {
	shard.Scripts
	change func(*shard.HomeReply)
	asked  int
}

func (h *homes) Homes(ctx context.Context, groups []shard.KeyGroup) ([]shard.HomeReply, error) {
	replies, err := h.Scripts.Homes(ctx, groups)
	for i := range replies {
		h.change(&replies[i])
	}
	return replies, err
}

func (h *homes) Likes(ctx context.Context, groups []shard.PairGroup) ([][]shard.PairValue, error) {
	values, err := h.Scripts.Likes(ctx, groups)
	<-time.After(time.Millisecond) // so that what is asked meanwhile is seen to be
	h.asked++
	return values, err
}

// TestDrainedHomeIsNotAsked: what a home knows of a pair that is away is asked for unless the ledger had it: not of a home that
// went back in time to before the marker, nor if the ledger cannot be asked. What is asked of a home is asked before the ledger, at
// once if the home was behind before.
func TestDrainedHomeIsNotAsked(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change         func(*shard.HomeReply)
		ledger         error
		homes, ledgers [2]int // asked for the first like, and for the next one
	}{
		"behind":             {change: func(r *shard.HomeReply) { r.Marked = 1 }, homes: [2]int{1, 1}, ledgers: [2]int{2, 1}},
		"drained":            {change: func(r *shard.HomeReply) { r.Marked = 0 }, ledgers: [2]int{1, 1}},
		"without its marker": {change: func(r *shard.HomeReply) { r.Marked, r.Markers[0] = 0, 0 }, homes: [2]int{1, 1}, ledgers: [2]int{2, 1}},
		// Once for each script that the like takes: the first goes without what the ledger has. The ledger is not asked again so soon.
		"ledger down": {
			change: func(r *shard.HomeReply) { r.Marked = 0 }, ledger: errors.New("down"), homes: [2]int{2, 2}, ledgers: [2]int{1, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newLikeTrips()
				s := c.store(t)
				key := nameAt(1)
				_, err := c.Spread(t.Context(), 1, []string{key}, 0)
				must(t, err)
				value(t, s, key) // from which the store learns the marker
				asked := &homes{Scripts: c.Scripts, change: test.change}
				c.Scripts, c.err = asked, test.ledger
				before := 0 // the ledger was asked last
				c.asking = func() { before = asked.asked }
				for i, actor := range []string{nameAt(3), nameAt(2)} {
					asked.asked, c.asked = 0, 0
					_, err = s.Apply(t.Context(), likeOf(key, actor))
					must(t, err)
					equal(t, "homes asked", asked.asked, test.homes[i])
					equal(t, "ledger asked", c.asked, test.ledgers[i])
					if test.ledger == nil {
						equal(t, "homes asked before the ledger", before, test.homes[i])
					}
				}
			})
		})
	}
}

// movedLike is a like with an id without a time that was set at its key's home, before the key was spread.
type movedLike struct {
	*likeTrips
	change  counter.Change
	receipt counter.Receipt
}

// newMovedLike sets the like by a server of its own, and spreads the key.
func newMovedLike(t *testing.T, c *likeTrips) *movedLike {
	t.Helper()
	m := &movedLike{likeTrips: c, change: likeOf(nameAt(1), nameAt(3))}
	m.change.RequestID = counter.ParseRequestID("like")
	s := c.store(t)
	var err error
	m.receipt, err = s.Apply(t.Context(), m.change)
	must(t, err)
	unlike := m.change
	unlike.Like, unlike.RequestID = counter.SetUnliked, counter.ParseRequestID("unlike")
	_, err = s.Apply(t.Context(), unlike)
	must(t, err)
	_, err = c.Spread(t.Context(), 1, []string{m.change.Entries[0].Key}, 0)
	must(t, err)
	return m
}

// retry repeats the like on a server that learns of the marker by looking the like up, and of nothing else.
func (m *movedLike) retry(t *testing.T, s *shard.Store) counter.Receipt {
	t.Helper()
	states, err := s.Likes(t.Context(), m.change.Actor, []string{m.change.Entries[0].Key})
	must(t, err)
	equal(t, "liked", states[0].Liked, false)
	r, err := s.Apply(t.Context(), m.change)
	must(t, err)
	equal(t, "outcome", r.Outcome, counter.Duplicate)
	equal(t, "changed", r.Changed, true)
	return r
}

// TestNewServerFindsIDAtHome: a server that has not heard of the Redis clock looks where ids of today are.
func TestNewServerFindsIDAtHome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		m := newMovedLike(t, c)
		m.retry(t, c.newStore(t))
	})
}

// unclaimed are scripts that do not say what ids are claimed.
type unclaimed struct{ shard.Scripts }

func (unclaimed) Claimed(context.Context, int, []counter.RequestID, int64) ([]shard.ClaimValue, error) {
	return nil, counter.ErrUnavailable
}

// TestUnknownIDAtHomeFailsTheLike: a like that may have been done at its key's home by the same id is not done again.
func TestUnknownIDAtHomeFailsTheLike(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		m, s := newMovedLike(t, c), c.store(t)
		redis := c.Scripts
		c.Scripts = unclaimed{redis}
		value(t, s, m.change.Entries[0].Key) // from which the store learns the marker
		if _, err := s.Apply(t.Context(), m.change); !errors.Is(err, counter.ErrUnavailable) {
			t.Errorf("a like by an id that may be known: %v", err)
		}
		c.Scripts = redis
		m.retry(t, s)
	})
}

// slowReads answer late.
type slowReads struct {
	shard.Scripts
	by time.Duration
}

func (s *slowReads) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	replies, err := s.Scripts.Read(ctx, groups)
	<-time.After(s.by)
	return replies, err
}

// TestRepetitionAtHomeIsNotBeforeTheLike: that a like was set at the key's home is told with a moment after that, also by
// a server whose idea of the Redis clock is late.
func TestRepetitionAtHomeIsNotBeforeTheLike(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		redis := c.Scripts
		c.Scripts = &slowReads{redis, 600 * time.Millisecond}
		late := c.store(t)
		c.Scripts = redis
		m := newMovedLike(t, c)
		<-time.After(200 * time.Millisecond)
		if r := m.retry(t, late); r.AsOf.Before(m.receipt.AsOf) || r.AsOf.After(time.Now().Add(time.Microsecond)) {
			t.Errorf("a like of %v was repeated as of %v, at %v", m.receipt.AsOf, r.AsOf, time.Now())
		}
	})
}

// TestHomeAloneIsProvisional: what the home of a spread key knows of a pair may be older than what was drained from the
// pair's place, and forgotten there. While the ledger cannot be asked, an answer by it is provisional, and what the place
// knows goes before it. A like that has a moment is not set by it.
func TestHomeAloneIsProvisional(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		s := c.store(t)
		key, actor, other := nameAt(1), nameAt(3), nameAt(2)
		sets := func(when, actor string, like counter.LikeAction, want string) {
			t.Helper()
			change := likeOf(key, actor)
			change.Like = like
			r, err := c.store(t).Apply(t.Context(), change)
			must(t, err)
			equal(t, when, fmt.Sprintf("changed %t, provisional %t", r.Changed, r.Provisional), want)
		}
		sets("at home", actor, counter.SetLiked, "changed true, provisional false")
		sets("at home", other, counter.SetLiked, "changed true, provisional false")
		_, err := c.Spread(t.Context(), 1, []string{key}, 0)
		must(t, err)
		value(t, s, key)
		sets("at the place", other, counter.SetUnliked, "changed true, provisional false")
		// The place's window with an unlike was drained, and its membership evicted.
		drained := map[counter.Pair]shard.PendingLike{{Key: key, Actor: actor}: {Micros: time.Now().UnixMicro(), Since: time.Now().UnixMicro()}}
		_, err = c.Apply(t.Context(), flush.Window{Shard: 3, ID: 1, WindowPart: shard.WindowPart{Likes: drained}})
		must(t, err)

		c.err = errors.New("down")
		sets("known to the place", other, counter.SetUnliked, "changed false, provisional false")
		_, _, err = s.SetLikes(t.Context(), []counter.DatedLike{{Pair: counter.Pair{Key: key, Actor: actor}, Micros: time.Now().UnixMicro() + 1}})
		if !errors.Is(err, counter.ErrUnavailable) {
			t.Errorf("a like with a moment: %v", err)
		}
		sets("known to the home", actor, counter.SetLiked, "changed false, provisional true")
	})
}
