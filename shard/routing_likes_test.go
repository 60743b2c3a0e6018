package shard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
// call says rightly whether it changed anything, and what the count is then if it says that, each retry is answered as the call that it repeats, even if the pair
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
	// calm: nothing is drained while a server waits, so that windows grow old.
	calm bool
	// waiting: a server that sets a like may have to ask the ledger. Nested is a like that another server has set then.
	waiting bool
	sender  int
	nested  *likeAnswer
}

const (
	routeShards = 4
	routedKey   = "hot"
)

func newLikeRoutes(t *testing.T, seed uint64) *likeRoutes {
	w := &likeRoutes{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), ledger: twin.NewLedger(routeShards), liked: map[string]bool{}}
	w.calm = w.rnd.IntN(2) == 0
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

// open opens a server. It remembers who likes the key whenever it can, if they are not too many.
func (w *likeRoutes) open() *shard.Store {
	s := shard.New(w.redis, &routeLedger{w.ledger, w}, shard.Config{
		Shards: routeShards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
	s.RememberLikers(w.rnd.IntN(6))
	return s
}

func (w *likeRoutes) close() {
	for _, s := range w.servers {
		_ = s.Close(w.t.Context())
	}
}

func (w *likeRoutes) server() *shard.Store { return w.servers[w.rnd.IntN(len(w.servers))] }

func (w *likeRoutes) run() {
	hotAt := w.rnd.IntN(300)
	for n := range 200 {
		w.micros.Add(int64([]int{0, 0, 1, 2, 5, 20}[w.rnd.IntN(6)]) * 1_000_000)
		if n == hotAt {
			w.spread()
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

func (w *likeRoutes) spread() {
	if _, err := w.redis.Spread(w.t.Context(), shard.Home(routedKey, routeShards), []string{routedKey}, []int{0, 2, 3}[w.rnd.IntN(3)]); err != nil {
		w.t.Error(err)
	}
}

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
	l.w.meanwhile(pairs[0])
	likes, err := l.Ledger.Likes(ctx, pairs)
	l.w.meanwhile(pairs[0])
	return likes, err
}

// meanwhile may turn the key hot, let another server set the pair, drain all that is pending and have Redis forget it,
// while a server waits for the ledger. The test waits for that server, so that this runs alone.
func (w *likeRoutes) meanwhile(pair counter.Pair) {
	if w.waiting && w.rnd.IntN(4) == 0 {
		w.waiting = false
		when := w.rnd.IntN(3)
		if when == 0 {
			w.spread()
		}
		other := (w.sender + 1 + w.rnd.IntN(len(w.servers)-1)) % len(w.servers)
		a := w.send(counter.Change{Entries: []counter.Entry{{Key: pair.Key}}, Actor: pair.Actor, Like: w.anyLike()}, other)
		w.nested = &a
		if when == 1 {
			w.spread()
		}
	}
	if w.calm || w.rnd.IntN(2) == 0 {
		return
	}
	w.micros.Add(modelWindow.Microseconds())
	w.drain()
	w.redis.EvictLikes(w.micros.Load() / (hourMS * 1000))
}

// set sets an actor's like, which may be what it is.
func (w *likeRoutes) set(n int) {
	now := w.micros.Load()
	c := counter.Change{Entries: []counter.Entry{{Key: routedKey}}, Actor: fmt.Sprint("actor-", w.rnd.IntN(5)), Like: w.anyLike()}
	switch w.rnd.IntN(5) {
	case 0:
	case 1, 2:
		c.RequestID = counter.ParseRequestID(fmt.Sprint("opaque-", n))
	default:
		off := time.Duration([]int{-40, -5, 0, 0, 10, 29}[w.rnd.IntN(6)]) * time.Second
		c.RequestID = counter.ParseRequestID(storetest.NewID(time.UnixMicro(now).Add(off)))
	}
	w.sender, w.waiting = w.rnd.IntN(len(w.servers)), true
	a := w.send(c, w.sender)
	w.waiting = false
	if w.nested != nil {
		w.answered(*w.nested)
		w.nested = nil
	}
	w.answered(a)
	if !c.RequestID.IsZero() {
		w.calls = append(w.calls, &likeCall{change: c, micros: now, changed: a.Changed})
	}
}

func (w *likeRoutes) anyLike() counter.LikeAction {
	return []counter.LikeAction{counter.SetLiked, counter.SetUnliked}[w.rnd.IntN(2)]
}

func (w *likeRoutes) send(c counter.Change, server int) likeAnswer {
	c.WantCount = true
	r, err := w.servers[server].Apply(w.t.Context(), c)
	return likeAnswer{change: c, Receipt: r, err: err}
}

// answered judges an answer to a like that was sent for the first time.
func (w *likeRoutes) answered(a likeAnswer) {
	wanted := a.change.Like == counter.SetLiked
	changes := w.liked[a.change.Actor] != wanted
	if a.err != nil || a.Outcome != counter.Applied || a.Changed != changes || a.Provisional {
		w.t.Errorf("%+v: %+v, %v; changes is %t", a.change, a.Receipt, a.err, changes)
	}
	w.liked[a.change.Actor] = wanted
	if a.Count != nil && (a.Count.Value != w.likes() || a.Count.Likes != w.likes()) {
		w.t.Errorf("%+v: the count is %+v with the answer, want %d", a.change, *a.Count, w.likes())
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
	w.checkStates(server)
	if got := server.Counts(w.t.Context(), []string{routedKey})[0]; got.Err != nil || got.Value != w.likes() || got.Likes != w.likes() {
		w.t.Errorf("count is %d with %d likes, %v; want %d", got.Value, got.Likes, got.Err, w.likes())
	}
}

func (w *likeRoutes) checkStates(server *shard.Store) {
	for i := range 5 {
		actor := fmt.Sprint("actor-", i)
		states, err := server.Likes(w.t.Context(), actor, []string{routedKey})
		if err != nil || states[0].Liked != w.liked[actor] {
			w.t.Errorf("%s: %+v, %v; want %t", actor, states, err, w.liked[actor])
		}
	}
}

// TestLikesOfASpreadKeyLeaveHome: each like of a spread key is written to the shard of its actor alone, whatever its
// id.
func TestLikesOfASpreadKeyLeaveHome(t *testing.T) {
	t.Parallel()
	const shards = 8
	c, store := newTrips(t)
	scripts := &watchedScripts{Scripts: c.Scripts}
	c.Scripts = scripts
	home := shard.Home(routedKey, shards)
	const width = 3
	_, err := scripts.Spread(t.Context(), home, []string{routedKey}, width)
	must(t, err)
	value(t, store, routedKey) // from which the store learns the marker
	for i := range 20 {
		change := counter.Change{Entries: []counter.Entry{{Key: routedKey}}, Actor: fmt.Sprint("actor-", i), Like: counter.SetLiked}
		change.RequestID = counter.ParseRequestID([]string{"", fmt.Sprint("opaque-", i), storetest.NewID(modelStart)}[i%3])
		for _, changed := range []bool{true, false} {
			scripts.written = nil
			r, err := store.Apply(t.Context(), change)
			must(t, err)
			place := (home + shard.Home(change.Actor, width)) % shards
			if len(scripts.written) == 0 || slices.ContainsFunc(scripts.written, func(n int) bool { return n != place }) {
				t.Errorf("like of %s was written to the shards %v, its place is %d", change.Actor, scripts.written, place)
			}
			equal(t, "changed", r.Changed, changed || !change.RequestID.IsZero())
		}
	}
}
