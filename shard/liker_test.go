package shard_test

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// likeTrips counts what likes cost.
type likeTrips struct {
	shard.Scripts
	*twin.Ledger
	writes, asked int
	pairs         int   // that the ledger was asked for
	err           error // of the ledger
	read          int   // how often it was asked who likes a key
	unread        error // the answer to that
	// asking is called when the ledger is asked, if it is not nil.
	asking func()
	// hold has writes wait, if it is not nil.
	hold chan struct{}
	// cluster: the servers that are made take Redis for one.
	cluster bool
}

func (c *likeTrips) Write(ctx context.Context, b *shard.WriteBatch) (shard.WriteReply, error) {
	c.writes++
	if c.hold != nil {
		<-c.hold
	}
	return c.Scripts.Write(ctx, b)
}

// Likes is a question to Redis, not to the ledger.
func (c *likeTrips) Likes(ctx context.Context, groups []shard.PairGroup) ([][]shard.PairValue, error) {
	return c.Scripts.Likes(ctx, groups)
}

// likeLedger is the ledger of likeTrips.
type likeLedger struct{ *likeTrips }

func (l likeLedger) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	l.asked, l.pairs = l.asked+1, l.pairs+len(pairs)
	if l.asking != nil {
		l.asking()
	}
	if err := cmp.Or(l.err, ctx.Err()); err != nil {
		return shard.LedgerLikes{}, err
	}
	return l.Ledger.Likes(ctx, pairs)
}

func (l likeLedger) Likers(ctx context.Context, key string, most int, visit func([]byte)) ([]int64, error) {
	l.read++
	if l.unread != nil {
		return nil, l.unread
	}
	return l.Ledger.Likers(ctx, key, most, visit)
}

func newLikeTrips() *likeTrips {
	scripts := twin.New(shard.RedisConfig{Shards: 4, Window: time.Minute, Dedupe: time.Minute, MaxSpread: 10}, func() int64 {
		return time.Now().UnixMicro()
	})
	return &likeTrips{Scripts: scripts, Ledger: twin.NewLedger(4)}
}

// store is a server of its own on the same Redis and ledger.
func (c *likeTrips) store(t *testing.T) *shard.Store {
	t.Helper()
	s := c.newStore(t)
	value(t, s, "other") // from which the store learns the time
	return s
}

func (c *likeTrips) newStore(t *testing.T) *shard.Store {
	t.Helper()
	s := shard.New(c, likeLedger{c}, shard.Config{
		Shards: 4, Cluster: c.cluster, Dedupe: time.Minute, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
	t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
	return s
}

// sets wants a like or unlike of actor to be answered so, and to cost so many scripts and questions to the ledger.
func (c *likeTrips) sets(t *testing.T, s *shard.Store, like counter.LikeAction, actor string, want counter.Receipt, writes, asked int) {
	t.Helper()
	c.writes, c.asked = 0, 0
	got, err := s.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: "k"}}, Actor: actor, Like: like})
	must(t, err)
	want.Outcome, want.AsOf = counter.Applied, got.AsOf
	if got.Batch.Changes != 1 || got.Batch.Sent.IsZero() {
		t.Errorf("%s was alone, and its batch is said to be %+v", actor, got.Batch)
	}
	got.Batch = counter.Batch{}
	equal(t, "receipt of "+actor, got, want)
	equal(t, "writes and questions for "+actor, [2]int{c.writes, c.asked}, [2]int{writes, asked})
}

// TestLikeTrips: a like of a new pair takes one question and one script, and one of a pair that the server has set lately
// a script alone. While the ledger is down, a server still learns of Redis what other servers have set.
func TestLikeTrips(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		one, other := c.store(t), c.store(t)
		changed, repeat := counter.Receipt{Changed: true}, counter.Receipt{}
		c.sets(t, one, counter.SetLiked, "al", changed, 1, 1)
		c.sets(t, one, counter.SetLiked, "al", repeat, 1, 0)
		c.sets(t, one, counter.SetUnliked, "al", changed, 1, 0)
		c.sets(t, other, counter.SetUnliked, "al", repeat, 1, 1)
		c.sets(t, one, counter.SetLiked, "bo", changed, 1, 1)
		c.sets(t, one, counter.SetLiked, "cy", changed, 1, 1)

		c.err = errors.New("down")
		c.sets(t, other, counter.SetUnliked, "bo", changed, 1, 1)
		c.sets(t, other, counter.SetLiked, "cy", repeat, 1, 0)
		c.sets(t, other, counter.SetLiked, "di", counter.Receipt{Changed: true, Provisional: true}, 2, 0)
		<-time.After(time.Hour / 2)
		// Only for who needs it is the ledger asked again.
		c.sets(t, other, counter.SetLiked, "bo", changed, 1, 0)
		c.sets(t, one, counter.SetUnliked, "di", changed, 1, 1)
		c.sets(t, other, counter.SetLiked, "ed", counter.Receipt{Changed: true, Provisional: true}, 2, 1)
		<-time.After(time.Minute)
		c.err = nil
		c.sets(t, other, counter.SetLiked, "fi", changed, 2, 1)
		c.sets(t, other, counter.SetLiked, "gus", changed, 1, 1)
	})
}

// TestLikesShareTrips: likes that arrive while others are loaded or written share one question and one script. One whose
// caller leaves holds nobody up.
func TestLikesShareTrips(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newLikeTrips()
		s := c.store(t)
		c.hold = make(chan struct{})
		var callers sync.WaitGroup
		leaving, leave := context.WithCancel(t.Context())
		like := func(ctx context.Context, actor string, want error) {
			callers.Go(func() {
				_, err := s.Apply(ctx, counter.Change{Entries: []counter.Entry{{Key: "k"}}, Actor: actor, Like: counter.SetLiked})
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", actor, err, want)
				}
			})
			synctest.Wait()
		}
		like(t.Context(), "al", nil)
		for _, actor := range []string{"bo", "cy", "di"} {
			like(t.Context(), actor, nil)
		}
		like(leaving, "ed", counter.ErrUnavailable)
		first := [2]int{c.writes, c.asked}
		leave()
		synctest.Wait()
		close(c.hold)
		callers.Wait()
		equal(t, "writes and questions of the first", first, [2]int{1, 1})
		equal(t, "writes and questions", [2]int{c.writes, c.asked}, [2]int{2, 2})
		c.sets(t, s, counter.SetLiked, "ed", counter.Receipt{Changed: true}, 1, 1)
	})
}
