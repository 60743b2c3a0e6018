package shard_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

// readsBehind watches the reads behind batches.
type readsBehind struct {
	shard.Scripts
	asked [][]shard.KeyGroup // by batch, in copies
	// change, if not nil, changes an answer.
	change func(*shard.WriteReply)
	// lose loses the answer of the next batch, which was applied.
	lose bool
}

func (r *readsBehind) Write(ctx context.Context, b *shard.WriteBatch) (shard.WriteReply, error) {
	var asked []shard.KeyGroup
	for _, g := range b.Counts {
		asked = append(asked, shard.KeyGroup{Shard: g.Shard, Keys: slices.Clone(g.Keys), Away: g.Away})
	}
	r.asked = append(r.asked, asked)
	reply, err := r.Scripts.Write(ctx, b)
	if r.lose {
		r.lose = false
		return shard.WriteReply{}, errFault
	}
	if r.change != nil {
		r.change(&reply)
	}
	return reply, err
}

// likeWanting is a like whose caller wants the count.
func likeWanting(key, actor string) counter.Change {
	c := likeOf(key, actor)
	c.WantCount = true
	return c
}

// TestCountOfALike: the answer to a like has the count as it is after the like, read behind the batch, unless that cannot be
// told. The like counts all the same.
func TestCountOfALike(t *testing.T) {
	t.Parallel()
	const marker = shard.Marker(1_600_000_000_000)
	home := shard.Home("k", 4)
	atHome := []shard.KeyGroup{{Shard: home, Keys: []string{"k"}}}
	everywhere := make([]shard.KeyGroup, 4)
	for n := range everywhere {
		everywhere[n] = shard.KeyGroup{Shard: n, Keys: []string{"k"}, Away: n != home}
	}
	for name, tc := range map[string]struct {
		cluster, unread, unwanted bool
		spread                    func(t *testing.T, c *likeTrips, s *shard.Store)
		lose                      bool
		change                    func(*shard.WriteReply)
		asked                     [][]shard.KeyGroup
		unknown                   bool
	}{
		"known":           {asked: [][]shard.KeyGroup{atHome}},
		"not wanted":      {unwanted: true, asked: [][]shard.KeyGroup{nil}, unknown: true},
		"base not cached": {unread: true, asked: [][]shard.KeyGroup{atHome}, unknown: true},
		"cluster":         {cluster: true, asked: [][]shard.KeyGroup{nil}, unknown: true},
		"read fails": {
			change: func(r *shard.WriteReply) { r.Counts = nil }, asked: [][]shard.KeyGroup{atHome}, unknown: true,
		},
		"answer is lost": {lose: true, asked: [][]shard.KeyGroup{atHome, nil}, unknown: true},
		"spread": {spread: func(t *testing.T, c *likeTrips, s *shard.Store) {
			_, err := c.Spread(t.Context(), home, []string{"k"}, 0)
			must(t, err)
			value(t, s, "k")
		}, asked: [][]shard.KeyGroup{everywhere}},
		// The batch is refused at first, as the sender does not know the marker.
		"spread by another server": {spread: func(t *testing.T, c *likeTrips, _ *shard.Store) {
			_, err := c.Spread(t.Context(), home, []string{"k"}, 0)
			must(t, err)
		}, asked: [][]shard.KeyGroup{atHome, everywhere}, unknown: true},
		"spread meanwhile": {change: func(r *shard.WriteReply) {
			r.Counts[0].Values[0].Marker = marker
		}, asked: [][]shard.KeyGroup{atHome}, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newLikeTrips()
				behind := &readsBehind{Scripts: c.Scripts}
				c.Scripts, c.cluster = behind, tc.cluster
				s := c.store(t)
				if !tc.unread {
					value(t, s, "k")
				}
				_, err := s.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: "k", Delta: 40}}})
				must(t, err)
				first, err := s.Apply(t.Context(), likeWanting("k", "al"))
				must(t, err)
				if first.Count != nil || behind.asked[len(behind.asked)-1] != nil {
					t.Errorf("the count %v of a key was read that was never liked before", first.Count)
				}
				if tc.spread != nil {
					tc.spread(t, c, s)
				}
				behind.asked, behind.lose, behind.change = nil, tc.lose, tc.change

				change := likeWanting("k", "bo")
				change.WantCount = !tc.unwanted
				change.RequestID = counter.ParseRequestID(storetest.NewID(time.Now()))
				began := time.Now()
				r, err := s.Apply(t.Context(), change)
				must(t, err)
				equal(t, "asked for", behind.asked, tc.asked)
				switch {
				case r.Outcome != counter.Applied || !r.Changed:
					t.Errorf("the like is answered %+v", r)
				case tc.unknown && r.Count != nil:
					t.Errorf("the count is %+v, and nobody can tell it", *r.Count)
				case !tc.unknown && r.Count == nil:
					t.Error("the count is not told")
				case !tc.unknown:
					equal(t, "count", *r.Count, counter.Count{Key: "k", Value: 42, Likes: 2, AsOf: time.UnixMicro(began.UnixMicro())})
				}
				equal(t, "count afterwards", value(t, s, "k"), 42)
			})
		})
	}
}

// TestCountsOfABatch: likes that share a batch get the counts of their own keys, but for those beyond what one read
// may ask for.
func TestCountsOfABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const keys, most = 600, 512
		c := newLikeTrips()
		behind := &readsBehind{Scripts: c.Scripts}
		c.Scripts = behind
		s := c.store(t)
		key := func(i int) string { return fmt.Sprint("k", i) }
		for i := range keys {
			value(t, s, key(i))
			for n := range i%3 + 1 {
				_, err := s.Apply(t.Context(), likeWanting(key(i), fmt.Sprint("actor-", n)))
				must(t, err)
			}
		}
		behind.asked, c.hold = nil, make(chan struct{})
		var callers sync.WaitGroup
		var counted atomic.Int64
		// Nearly all pairs that were set lately go to the lane at once, where the batch before holds them up. What is set lately is
		// known by hashes, of which a few meet.
		send := func(key string, likes int64) {
			change := likeWanting(key, "actor-0")
			change.Like = counter.SetUnliked
			callers.Go(func() {
				r, err := s.Apply(t.Context(), change)
				must(t, err)
				if r.Count == nil {
					return
				}
				counted.Add(1)
				equal(t, "key", r.Count.Key, key)
				equal(t, "count of "+key, [2]int64{r.Count.Value, r.Count.Likes}, [2]int64{likes, likes})
			})
		}
		send(key(0), 0)
		synctest.Wait()
		for i := 1; i < keys; i++ {
			send(key(i), int64(i%3))
		}
		synctest.Wait()
		close(c.hold)
		callers.Wait()
		var asked, largest int
		for _, groups := range behind.asked {
			lookups := 0
			for _, g := range groups {
				lookups += len(g.Keys)
			}
			asked, largest = asked+lookups, max(largest, lookups)
		}
		equal(t, "lookups of the largest batch", largest, most)
		equal(t, "with a count", counted.Load(), int64(asked))
	})
}
