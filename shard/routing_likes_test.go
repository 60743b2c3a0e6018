package shard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// TestRoutingLikesModel turns one key hot while actors like it and take that back on servers that know of it and on
// servers that do not, answers are lost, windows are drained and membership is evicted. Whatever the servers know, each
// call says rightly whether it changed anything, each retry is answered as the call that it repeats, even if the pair
// was changed since, and the key has the likes of those who like it (rules 9 and 10).
func TestRoutingLikesModel(t *testing.T) {
	t.Parallel()
	for range *modelRuns {
		seed := cmp.Or(*modelSeed, rand.Uint64())
		w := newLikeRoutes(t, seed)
		w.run()
		w.close()
		if t.Failed() {
			t.Fatalf("repeat with: -run '^%s$' -model.seed %d", t.Name(), seed)
		}
	}
}

// likeRoutes is a key that becomes hot, and its actors.
type likeRoutes struct {
	t       *testing.T
	rnd     *rand.Rand
	micros  atomic.Int64
	redis   *twin.Redis
	ledger  *twin.Ledger
	worker  *flush.Worker
	servers []*shard.Store
	liked   map[string]bool // by actor
	calls   []*likeCall
}

const (
	routeShards = 4
	routedKey   = "hot"
)

func newLikeRoutes(t *testing.T, seed uint64) *likeRoutes {
	w := &likeRoutes{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), ledger: twin.NewLedger(routeShards), liked: map[string]bool{}}
	w.micros.Store(modelStart.UnixMicro())
	w.redis = twin.New(shard.RedisConfig{
		Shards: routeShards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
	}, func() int64 { return w.micros.Add(1) })
	w.worker = flush.NewWorker(w.redis, w.ledger, flush.WorkerConfig{
		Shards: routeShards, Window: modelWindow, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: quietLog(),
	})
	for range 3 {
		w.servers = append(w.servers, w.open())
	}
	return w
}

func (w *likeRoutes) open() *shard.Store {
	return shard.New(w.redis, &routeLedger{w.ledger, w}, shard.Config{
		Shards: routeShards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
}

func (w *likeRoutes) close() {
	for _, s := range w.servers {
		_ = s.Close(w.t.Context())
	}
}

func (w *likeRoutes) server() *shard.Store { return w.servers[w.rnd.IntN(len(w.servers))] }

func (w *likeRoutes) run() {
	hotAt := w.rnd.IntN(150)
	for n := range 200 {
		w.micros.Add(int64([]int{0, 0, 1, 2, 5, 20}[w.rnd.IntN(6)]) * 1_000_000)
		if n == hotAt {
			_, err := w.redis.Spread(w.t.Context(), shard.Home(routedKey, routeShards), []string{routedKey})
			must(w.t, err)
		}
		switch x := w.rnd.IntN(100); {
		case x < 45:
			w.set(n)
		case x < 75:
			w.retry()
		case x < 80:
			i := w.rnd.IntN(len(w.servers))
			_ = w.servers[i].Close(w.t.Context())
			w.servers[i] = w.open()
		case x < 85:
			w.drain()
		case x < 88:
			w.redis.EvictLikes(w.micros.Load() / (hourMS * 1000))
		case x < 90:
			w.redis.Evict(routedKey)
		default:
			w.check()
		}
		if w.t.Failed() {
			return
		}
	}
	w.drain()
	w.micros.Add(likesWaitIsOver)
	w.drain()
	w.check()
	for pair := range w.ledger.LikedPairs() {
		if !w.liked[pair.Actor] {
			w.t.Errorf("%v is liked in the ledger, and was taken back", pair)
		}
	}
	equal(w.t, "likes in the ledger", w.ledger.LikeTotals()[routedKey], w.likes())
	equal(w.t, "total in the ledger", w.ledger.Totals()[routedKey], w.likes())
}

// likesWaitIsOver is after how long no window waits for another, in µs.
const likesWaitIsOver = 4 * int64(modelWindow/time.Microsecond)

// drain drains the shards in any order.
func (w *likeRoutes) drain() {
	for _, n := range w.rnd.Perm(routeShards) {
		if err := w.worker.Round(w.t.Context(), n); err != nil {
			w.t.Error(err)
		}
	}
}

// routeLedger is the ledger of a server. Now and then all that is pending is drained, and forgotten by Redis, right
// before or after it is asked. The test waits for the server meanwhile.
type routeLedger struct {
	*twin.Ledger
	w *likeRoutes
}

func (l *routeLedger) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	for l.w.rnd.IntN(4) == 0 {
		l.w.forget()
	}
	likes, err := l.Ledger.Likes(ctx, pairs)
	for l.w.rnd.IntN(4) == 0 {
		l.w.forget()
	}
	return likes, err
}

func (w *likeRoutes) forget() {
	w.micros.Add(modelWindow.Microseconds())
	w.drain()
	w.redis.EvictLikes(w.micros.Load() / (hourMS * 1000))
}

// set sets an actor's like, which may be what it is.
func (w *likeRoutes) set(n int) {
	now := w.micros.Load()
	c := counter.Change{
		Entries: []counter.Entry{{Key: routedKey}}, Actor: fmt.Sprint("actor-", w.rnd.IntN(5)), Like: counter.SetLiked,
	}
	if w.rnd.IntN(2) == 0 {
		c.Like = counter.SetUnliked
	}
	switch w.rnd.IntN(5) {
	case 0:
	case 1, 2:
		c.RequestID = counter.ParseRequestID(fmt.Sprint("opaque-", n))
	default:
		off := time.Duration([]int{-40, -5, 0, 0, 10, 29}[w.rnd.IntN(6)]) * time.Second
		c.RequestID = counter.ParseRequestID(storetest.NewID(time.UnixMicro(now).Add(off)))
	}
	r, err := w.server().Apply(w.t.Context(), c)
	wanted := c.Like == counter.SetLiked
	changes := w.liked[c.Actor] != wanted
	if err != nil || r.Outcome != counter.Applied || r.Changed != changes || r.Provisional {
		w.t.Errorf("%+v: %+v, %v; changes is %t", c, r, err, changes)
	}
	w.liked[c.Actor] = wanted
	if !c.RequestID.IsZero() {
		w.calls = append(w.calls, &likeCall{change: c, micros: now, changed: changes})
	}
}

// retry sends an earlier call again, whose answer may have been lost, or uses its id for another one.
func (w *likeRoutes) retry() {
	if len(w.calls) == 0 {
		return
	}
	call := w.calls[w.rnd.IntN(len(w.calls))]
	c := call.change
	_, timed := c.RequestID.Time()
	if !timed && w.micros.Load()-call.micros > counter.DefaultDedupeWindow.Microseconds() {
		return // such an id may be forgotten by now
	}
	reused := w.rnd.IntN(4) == 0
	if reused {
		c.Like = counter.SetLiked + counter.SetUnliked - c.Like
	}
	r, err := w.server().Apply(w.t.Context(), c)
	switch {
	case errors.Is(err, counter.ErrRequestIDExpired) && timed:
	case reused && errors.Is(err, counter.ErrRequestIDReused):
	case reused || err != nil || r.Outcome != counter.Duplicate || r.Changed != call.changed:
		w.t.Errorf("repeat (reused id: %t) of %+v: %+v, %v; changed was %t", reused, call.change, r, err, call.changed)
	}
}

func (w *likeRoutes) likes() (n int64) {
	for _, liked := range w.liked {
		if liked {
			n++
		}
	}
	return n
}

// check reads everything from a server.
func (w *likeRoutes) check() {
	server := w.server()
	if got := server.Counts(w.t.Context(), []string{routedKey})[0]; got.Err != nil || got.Value != w.likes() || got.Likes != w.likes() {
		w.t.Errorf("count is %d with %d likes, %v; want %d", got.Value, got.Likes, got.Err, w.likes())
	}
	for i := range 5 {
		actor := fmt.Sprint("actor-", i)
		states, err := server.Likes(w.t.Context(), actor, []string{routedKey})
		if err != nil || states[0].Liked != w.liked[actor] {
			w.t.Errorf("%s: %+v, %v; want %t", actor, states, err, w.liked[actor])
		}
	}
}
