package shard_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// crowds are likes of one key by many at once, and a worker.
type crowds struct {
	*likeTrips
	redis  *twin.Redis
	worker *flush.Worker
	key    string
	actors int
}

const crowdWindow = 5 * time.Second

func newCrowds() *crowds {
	redis := twin.New(shard.RedisConfig{Shards: 4, Window: crowdWindow, Dedupe: time.Minute, MaxSpread: 10}, func() int64 {
		return time.Now().UnixMicro()
	})
	c := &crowds{likeTrips: &likeTrips{Scripts: redis, Ledger: twin.NewLedger(4)}, redis: redis, key: nameAt(1)}
	c.worker = flush.NewWorker(redis, c.Ledger, flush.WorkerConfig{
		Shards: 4, Window: crowdWindow, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: quietLog(),
	})
	return c
}

// drain drains what is due.
func (c *crowds) drain(t *testing.T) {
	t.Helper()
	for _, n := range []int{1, 0, 2, 3} { // the home first, for which the others wait
		must(t, c.worker.Round(t.Context(), n))
	}
}

const crowd = 100

// question is for whom of a crowd the ledger is asked.
type question string

const (
	asked    question = "all"
	notAsked question = "none"
	anybody  question = "anybody" // until a snapshot is loaded
)

// like wants the key to be liked by a crowd of new actors, and the ledger to be asked.
func (c *crowds) like(t *testing.T, when string, s *shard.Store, question question) {
	t.Helper()
	c.pairs = 0
	var callers sync.WaitGroup
	for range crowd {
		c.actors++
		actor := fmt.Sprint("actor-", c.actors)
		callers.Go(func() {
			r, err := s.Apply(t.Context(), likeOf(c.key, actor))
			if err != nil || !r.Changed || r.Provisional {
				t.Errorf("%s, %s: %+v, %v", when, actor, r, err)
			}
		})
	}
	callers.Wait()
	synctest.Wait()
	if question == asked && c.pairs < crowd || question == notAsked && c.pairs > 0 {
		t.Errorf("%s, the ledger is asked for %d of them, want %s", when, c.pairs, question)
	}
	equal(t, when+", the count", value(t, s, c.key), int64(c.actors))
}

// round has a crowd like the key, and drains that with what came before it when the window is over.
func (c *crowds) round(t *testing.T, when string, s *shard.Store, question question) {
	t.Helper()
	c.like(t, when, s, question)
	<-time.After(crowdWindow)
	c.drain(t)
}

// TestLikersAreRemembered: of a key that many like the ledger is asked for a while, until it has what each shard had when the key was
// spread, and then for who is in it, and in the next hour.
func TestLikersAreRemembered(t *testing.T) {
	t.Parallel()
	for name, spread := range map[string]bool{"at home": false, "spread": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCrowds()
				s := c.store(t)
				<-time.After(2 * time.Minute)
				c.like(t, "first", s, asked)
				if spread {
					_, err := c.Spread(t.Context(), 1, []string{c.key}, 0)
					must(t, err)
					value(t, s, c.key) // from which the store learns the marker
				}
				for range 4 {
					c.round(t, "while nothing is drained", s, asked)
				}
				for range 2 {
					c.like(t, "when it is drained", s, anybody)
				}
				for range 4 {
					c.round(t, "when it is remembered", s, notAsked)
				}

				// Who is in the ledger is asked for, by a server that has not set it.
				other := c.store(t)
				value(t, other, c.key)
				c.asked = 0
				r, err := other.Apply(t.Context(), likeOf(c.key, "actor-1"))
				must(t, err)
				equal(t, "changed again", r.Changed, false)
				equal(t, "ledger asked for a liker", c.asked, 1)

				next := time.Now().Truncate(time.Hour).Add(time.Hour)
				<-time.After(time.Until(next) - 9*time.Second)
				c.like(t, "when the hour ends", s, asked)
				<-time.After(time.Until(next) + time.Second)
				for range 6 {
					c.round(t, "in the next hour", s, asked)
				}
				for range 13 {
					c.round(t, "when windows of the hour are drained", s, anybody)
				}
				c.like(t, "remembered for the hour", s, notAsked)
			})
		})
	}
}

// TestLikersAreForgotten: when membership was evicted, what came after the snapshot is asked for again, and no snapshot is taken for a
// while.
func TestLikersAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowds()
		s := c.store(t)
		<-time.After(2 * time.Minute)
		for range 4 {
			c.round(t, "at first", s, asked)
		}
		for range 2 {
			c.round(t, "to be remembered", s, anybody)
		}
		c.round(t, "remembered", s, notAsked)
		c.redis.EvictLikes(time.Now().Unix() / 3600)
		c.asked = 0
		r, err := s.Apply(t.Context(), likeOf(c.key, fmt.Sprint("actor-", c.actors)))
		must(t, err)
		equal(t, "changed again", r.Changed, false)
		equal(t, "ledger asked for somebody who is no more in membership", c.asked, 1)
		for range 6 {
			c.round(t, "forgotten", s, asked)
		}
		for range 2 {
			c.round(t, "to be remembered again", s, anybody)
		}
		c.round(t, "remembered again", s, notAsked)
	})
}

// TestLikersCannotBeRead: while the ledger is down, likes are what they are without a memory, and it is tried again.
func TestLikersCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowds()
		s := c.store(t)
		<-time.After(2 * time.Minute)
		c.unread = errors.New("down")
		for range 8 {
			c.round(t, "unread", s, asked)
		}
		c.unread = nil
		<-time.After(30 * time.Second)
		for range 2 {
			c.like(t, "to be read", s, anybody)
		}
		c.like(t, "read", s, notAsked)
	})
}

// TestTooManyLikersAreNotRemembered: of a key with more likers than are remembered everybody is asked for, and it is not read again in
// the hour.
func TestTooManyLikersAreNotRemembered(t *testing.T) {
	t.Parallel()
	for most, question := range map[int]question{crowd - 1: asked, crowd: notAsked} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCrowds()
				s := c.newStore(t)
				s.RememberLikers(most)
				<-time.After(time.Minute)
				value(t, s, "other") // from which the store learns the time
				c.round(t, "not drained yet", s, anybody)
				for range 2 {
					c.like(t, "drained", s, anybody)
				}
				c.read = 0
				c.like(t, "read", s, question)
				equal(t, "read", c.read, 0)
			})
		})
	}
}

// TestLikersDoNotAnswerForAHomeThatIsBehind: what leaves the windows of a home that is asked for a pair is in the ledger, and not in a
// snapshot from before.
func TestLikersDoNotAnswerForAHomeThatIsBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowds()
		s, other := c.newStore(t), c.store(t)
		s.RememberLikers(crowd)
		value(t, s, "other") // from which the store learns the time
		<-time.After(time.Minute)
		set := func(s *shard.Store, place int, like counter.LikeAction) {
			t.Helper()
			change := likeOf(c.key, nameAt(place))
			change.Like = like
			r, err := s.Apply(t.Context(), change)
			must(t, err)
			equal(t, "changed", r.Changed, true)
			synctest.Wait()
		}
		set(other, 3, counter.SetLiked) // at home
		_, err := c.Spread(t.Context(), 1, []string{c.key}, 0)
		must(t, err)
		value(t, s, c.key)               // from which the store learns the marker
		set(s, 2, counter.SetLiked)      // the home turns out to be behind
		equal(t, "snapshots", c.read, 1) // which has nothing of the first
		<-time.After(crowdWindow)
		c.drain(t)
		c.redis.EvictLikes(time.Now().Unix() / 3600)
		set(s, 3, counter.SetUnliked)
	})
}
