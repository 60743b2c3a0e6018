package shard_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// TestRoutingRollbackModel has Redis, or the key's home alone, go back in time while a hot key is written, so that it
// loses the marker, which may then be made anew with another width. No id is counted twice, and none is lost that was
// answered for after the rollback was noticed (rules 6 and 9).
func TestRoutingRollbackModel(t *testing.T) {
	t.Parallel()
	for range *modelRuns {
		seed := cmp.Or(*modelSeed, rand.Uint64())
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(modelStart)) // no marker with a width can be from 2000
			w := newRollbackRoutes(t, seed)
			w.run()
			w.close()
		})
		if t.Failed() {
			t.Fatalf("repeat with: -run '^%s$' -model.seed %d", t.Name(), seed)
		}
	}
}

const (
	// rollbackIDs is how many ids there are. Each adds a power of 8, so that the total tells how often each was counted. A
	// few likes, which leave home at once, add 1.
	rollbackIDs = 20
	// freshMarker is how long after it was made a marker may be lost that the ledger does not have (docs/design.md, Limits).
	freshMarker = 25 * time.Second
)

// rollbackRoutes is a key that becomes hot, and whose home loses the marker.
type rollbackRoutes struct {
	t       *testing.T
	rnd     *rand.Rand
	redis   *twin.Redis
	ledger  *twin.Ledger
	worker  *flush.Worker
	servers []*shard.Store
	home    int
	past    []twin.Snapshot
	calls   []*rollbackCall
}

type rollbackCall struct {
	change   counter.Change
	micros   int64
	answered bool // for good
	counted  bool // and not gone back since
}

func newRollbackRoutes(t *testing.T, seed uint64) *rollbackRoutes {
	w := &rollbackRoutes{
		t: t, rnd: rand.New(rand.NewPCG(seed, 0)), ledger: twin.NewLedger(routeShards), home: shard.Home(routedKey, routeShards),
	}
	w.redis = twin.New(shard.RedisConfig{
		Shards: routeShards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
	}, func() int64 { return time.Now().UnixMicro() })
	w.worker = flush.NewWorker(w.redis, w.ledger, flush.WorkerConfig{
		Shards: routeShards, Window: modelWindow, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: quietLog(),
	})
	w.past = append(w.past, w.redis.Snapshot())
	for range 3 {
		w.servers = append(w.servers, w.open())
	}
	return w
}

func (w *rollbackRoutes) open() *shard.Store {
	return shard.New(w.redis, w.ledger, shard.Config{
		Shards: routeShards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Minute,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
}

func (w *rollbackRoutes) close() {
	for _, s := range w.servers {
		_ = s.Close(w.t.Context())
	}
}

func (w *rollbackRoutes) reopen(i int) {
	_ = w.servers[i].Close(w.t.Context())
	w.servers[i] = w.open()
}

func (w *rollbackRoutes) server() *shard.Store { return w.servers[w.rnd.IntN(len(w.servers))] }

func (w *rollbackRoutes) run() {
	for range 150 {
		time.Sleep(time.Duration([]int{0, 1, 2, 5, 20}[w.rnd.IntN(5)]) * time.Second)
		switch x := w.rnd.IntN(100); {
		case x < 25:
			w.call()
		case x < 50:
			w.retry()
		case x < 58:
			w.spread()
		case x < 64:
			like := counter.Change{Entries: []counter.Entry{{Key: routedKey}}, Actor: fmt.Sprint("actor-", w.rnd.IntN(3)), Like: counter.SetLiked}
			_, err := w.server().Apply(w.t.Context(), like)
			must(w.t, err)
		case x < 76:
			must(w.t, w.worker.Round(w.t.Context(), w.rnd.IntN(routeShards)))
		case x < 82:
			w.reopen(w.rnd.IntN(len(w.servers)))
		case x < 86:
			w.redis.Evict(routedKey)
		case x < 90:
			must(w.t, w.server().Counts(w.t.Context(), []string{routedKey})[0].Err)
		case x < 95:
			w.past = append(w.past, w.redis.Snapshot())
		default:
			w.goBack()
		}
	}
	for _, c := range w.calls {
		if !c.answered {
			w.send(c)
		}
	}
	w.check("count", w.server().Counts(w.t.Context(), []string{routedKey})[0].Value)
	time.Sleep(modelWindow)
	for n := range routeShards {
		must(w.t, w.worker.Round(w.t.Context(), n))
	}
	w.check("total in the ledger", w.ledger.Totals()[routedKey])
}

// check tells from a total how often each id was counted.
func (w *rollbackRoutes) check(what string, total int64) {
	for i, c := range w.calls {
		if n := total >> (3 * (i + 1)) & 7; n > 1 || n == 0 && c.counted {
			w.t.Errorf("%s %o: id %d of %+v was counted %d times; answered: %t", what, total, i, c.change, n, c.counted)
		}
	}
}

// spread marks the key, each time with another width: that of the first marker stays.
func (w *rollbackRoutes) spread() {
	_, err := w.redis.Spread(w.t.Context(), w.home, []string{routedKey}, []int{0, 2, 3}[w.rnd.IntN(3)])
	must(w.t, err)
}

// call sends an id for the first time. Clocks of callers are not ahead: an id that is may outlive a rollback.
func (w *rollbackRoutes) call() {
	if len(w.calls) == rollbackIDs {
		return
	}
	c := &rollbackCall{change: counter.Change{Entries: []counter.Entry{{Key: routedKey, Delta: 1 << (3 * (len(w.calls) + 1))}}}}
	c.micros = time.Now().UnixMicro()
	if w.rnd.IntN(4) == 0 {
		c.change.RequestID = counter.ParseRequestID(fmt.Sprint("opaque-", len(w.calls)))
	} else {
		off := time.Duration([]int{-40, -5, 0}[w.rnd.IntN(3)]) * time.Second
		c.change.RequestID = counter.ParseRequestID(storetest.NewID(time.Now().Add(off)))
	}
	w.calls = append(w.calls, c)
	w.send(c)
}

// retry repeats a call, also one that was answered.
func (w *rollbackRoutes) retry() {
	if len(w.calls) > 0 {
		w.send(w.calls[w.rnd.IntN(len(w.calls))])
	}
}

func (w *rollbackRoutes) send(c *rollbackCall) {
	_, timed := c.change.RequestID.Time()
	if !timed && time.Now().UnixMicro()-c.micros > counter.DefaultDedupeWindow.Microseconds() {
		c.answered = true // such an id may be forgotten by now
		return
	}
	_, err := w.server().Apply(w.t.Context(), c.change)
	switch {
	case errors.Is(err, counter.ErrRequestIDExpired):
		c.answered = true
	case err != nil:
		w.t.Errorf("%+v: %v", c.change, err)
	default:
		c.answered, c.counted = c.answered || w.rnd.IntN(10) < 6, true // or the answer was lost
	}
}

// goBack takes Redis, or the home of the key alone, to an earlier state, and lets the workers notice. Before that the
// key may be found hot again, by servers that do not know that it was.
func (w *rollbackRoutes) goBack() {
	i := w.rnd.IntN(len(w.past))
	if w.rnd.IntN(3) == 0 {
		i = 0
	}
	drained, err := w.ledger.Markers(w.t.Context(), w.home)
	must(w.t, err)
	replies, err := w.redis.Read(w.t.Context(), []shard.KeyGroup{{Shard: w.home, Keys: []string{routedKey}}})
	must(w.t, err)
	marker := replies[0].Values[0].Marker
	if marker != drained[routedKey] && time.Since(time.UnixMilli(marker.Time())) > freshMarker {
		return
	}
	if w.rnd.IntN(2) == 0 {
		w.redis.Restore(w.past[i])
	} else {
		w.redis.RestoreShard(w.past[i], w.home)
	}
	w.past = w.past[:i+1]
	for _, c := range w.calls {
		c.counted = false // as far as anybody knows
	}
	time.Sleep(time.Millisecond)
	if w.rnd.IntN(2) == 0 {
		for i := range w.servers {
			w.reopen(i)
		}
		if w.rnd.IntN(2) == 0 {
			w.spread()
		}
	}
	for n := range routeShards {
		must(w.t, w.worker.Round(w.t.Context(), n))
	}
	time.Sleep(time.Millisecond) // nothing is taken that was made in the moment of a rollback
}
