package shard_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// routed is one call that is repeated until it is answered.
type routed struct {
	change   counter.Change
	made     int64 // Redis clock
	answered bool
	counted  bool
}

// TestRoutingModel turns one key hot while calls of all kinds are tried on servers that know of it and on
// servers that do not, answers are lost, and clocks of callers are off. Over how many shards the key is to be spread
// changes all the time. Whatever the servers know, a call is counted once: every retry meets its own claim (rule 9).
func TestRoutingModel(t *testing.T) {
	t.Parallel()
	for range 3 * *modelRuns {
		seed := cmp.Or(*modelSeed, rand.Uint64())
		routeOnce(t, seed)
		if t.Failed() {
			t.Fatalf("repeat with: -run '^%s$' -model.seed %d", t.Name(), seed)
		}
	}
}

func routeOnce(t *testing.T, seed uint64) {
	const shards, key = 4, "hot"
	rnd := rand.New(rand.NewPCG(seed, 0))
	micros := &atomic.Int64{}
	micros.Store(modelStart.UnixMicro())
	redis := twin.New(shard.RedisConfig{
		Shards: shards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
	}, func() int64 { return micros.Add(1) })
	open := func() *shard.Store {
		return shard.New(redis, twin.NewLedger(shards), shard.Config{
			Shards: shards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour,
			Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
		})
	}
	servers := []*shard.Store{open(), open(), open()}
	defer func() {
		for _, s := range servers {
			_ = s.Close(t.Context())
		}
	}()
	var calls []*routed
	var pending []*routed
	try := func(c *routed) {
		if _, timed := c.change.RequestID.Time(); !timed && micros.Load()-c.made > counter.DefaultDedupeWindow.Microseconds() {
			c.answered = true // such an id may be forgotten by now
			return
		}
		r, err := servers[rnd.IntN(len(servers))].Apply(t.Context(), c.change)
		lost := rnd.IntN(10) < 4
		switch {
		case errors.Is(err, counter.ErrRequestIDExpired) || errors.Is(err, counter.ErrRequestIDEarly):
			c.answered = true
		case err != nil:
			t.Errorf("%+v: %v", c.change, err)
		case !lost:
			c.answered, c.counted = true, c.counted || r.Outcome == counter.Applied || r.Outcome == counter.Duplicate
		case r.Outcome == counter.Applied:
			c.counted = true // which the caller does not know
		}
	}
	for n := range 400 {
		micros.Add(int64([]int{0, 1, 2, 5, 20}[rnd.IntN(5)]) * 1_000_000)
		switch x := rnd.IntN(100); {
		case x < 40:
			c := &routed{change: randomCall(rnd, key, n, time.UnixMicro(micros.Load())), made: micros.Load()}
			calls, pending = append(calls, c), append(pending, c)
		case x < 42:
			width := []int{0, 2, 3}[rnd.IntN(3)]
			if _, err := redis.Spread(t.Context(), shard.Home(key, shards), []string{key}, width); err != nil {
				t.Fatal(err)
			}
		case x < 45:
			i := rnd.IntN(len(servers))
			_ = servers[i].Close(t.Context())
			servers[i] = open()
		case x < 50:
			servers[rnd.IntN(len(servers))].Counts(t.Context(), []string{key})
		}
		if len(pending) > 0 {
			i := rnd.IntN(len(pending))
			if try(pending[i]); pending[i].answered {
				pending = append(pending[:i], pending[i+1:]...)
			}
		}
	}
	for len(pending) > 0 {
		if try(pending[0]); pending[0].answered {
			pending = pending[1:]
		}
	}
	want := int64(0)
	for _, c := range calls {
		if c.counted {
			want++
		}
	}
	if got := servers[0].Counts(t.Context(), []string{key})[0]; got.Err != nil || got.Value != want {
		t.Errorf("%d calls were counted, and the count is %d, %v", want, got.Value, got.Err)
	}
}

// randomCall adds 1 by a request id, a once-per claim, or both. A repeat of a call without an id is not told
// from another call, so each has an actor of its own.
func randomCall(rnd *rand.Rand, key string, n int, now time.Time) counter.Change {
	c := counter.Change{Entries: []counter.Entry{{Key: key, Delta: 1}}}
	off := time.Duration([]int{-40, -5, 0, 0, 0, 10, 29}[rnd.IntN(7)]) * time.Second
	switch rnd.IntN(3) {
	case 0:
		c.RequestID = counter.ParseRequestID(fmt.Sprint("opaque-", n))
	default:
		c.RequestID = counter.ParseRequestID(storetest.NewID(now.Add(off)))
	}
	if rnd.IntN(3) == 0 {
		c.Actor, c.OncePer = fmt.Sprint("actor-", n), []time.Duration{time.Minute, 10 * time.Minute}[rnd.IntN(2)]
	}
	return c
}
