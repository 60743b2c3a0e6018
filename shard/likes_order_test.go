package shard_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// moved is a deployment of which a test drains the shards one by one, and a pair whose place is not its key's home.
type moved struct {
	t           *testing.T
	micros      atomic.Int64
	redis       *twin.Redis
	store       *shard.Store
	worker      *flush.Worker
	key, actor  string
	home, place int
}

func newMove(t *testing.T) *moved {
	const shards = 4
	m := &moved{t: t, key: "post", home: shard.Home("post", shards)}
	m.place = m.home
	for i := 0; m.place == m.home; i++ {
		m.actor = fmt.Sprint("user:", i)
		m.place = shard.Home(m.actor, shards)
	}
	m.micros.Store(modelStart.UnixMicro())
	m.redis = twin.New(shard.RedisConfig{Shards: shards, Window: modelWindow, Dedupe: modelDedupe, MaxSpread: 10},
		func() int64 { return m.micros.Add(1) })
	ledger := twin.NewLedger(shards)
	m.store = shard.New(m.redis, ledger, shard.Config{
		Shards: shards, Dedupe: modelDedupe, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
	t.Cleanup(func() { _ = m.store.Close(context.WithoutCancel(t.Context())) })
	m.worker = flush.NewWorker(m.redis, ledger, flush.WorkerConfig{
		Shards: shards, Window: modelWindow, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: quietLog(),
	})
	return m
}

// set changes the like of the pair.
func (m *moved) set(action counter.LikeAction) {
	m.t.Helper()
	c := counter.Change{Entries: []counter.Entry{{Key: m.key}}, Actor: m.actor, Like: action}
	if receipt, err := m.store.Apply(m.t.Context(), c); err != nil || !receipt.Changed || receipt.Provisional {
		m.t.Fatalf("%+v, %v", receipt, err)
	}
}

func (m *moved) spread() {
	m.t.Helper()
	if _, err := m.redis.Spread(m.t.Context(), m.home, []string{m.key}, 0); err != nil {
		m.t.Fatal(err)
	}
}

func (m *moved) check(when string, want int64) {
	m.t.Helper()
	got := m.store.Counts(m.t.Context(), []string{m.key})[0]
	if got.Err != nil || got.Value != want || got.Likes != want {
		m.t.Errorf("%s: count %d with %d likes, %v; want %d", when, got.Value, got.Likes, got.Err, want)
	}
}

// An actor who liked a key just before it was spread and takes that back just after has two pending states, on two
// shards. Whichever shard a worker comes to first, the count is right all the time.
func TestLikesOfASpreadKeyKeepTheirOrder(t *testing.T) {
	t.Parallel()
	const home, place = 0, 1
	for name, rounds := range map[string][]int{
		"home first": {home, place}, "home last": {place, home, place}, "home late": {place, place, place, home, place},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMove(t)
			m.set(counter.SetLiked) // what the ledger has of the pair makes the order matter
			m.micros.Add(modelWindow.Microseconds())
			must(t, m.worker.Round(t.Context(), m.home))

			m.set(counter.SetUnliked)
			m.set(counter.SetLiked)
			m.set(counter.SetUnliked)
			m.spread()
			m.set(counter.SetLiked)
			m.set(counter.SetUnliked)
			m.check("after the move", 0)
			m.micros.Add(modelWindow.Microseconds())
			for i, n := range rounds {
				must(t, m.worker.Round(t.Context(), []int{m.home, m.place}[n]))
				m.check(fmt.Sprintf("after round %d", i), 0)
			}
			if left := len(m.redis.Windows(m.home)) + len(m.redis.Windows(m.place)); left > 0 {
				t.Errorf("%d windows are left", left)
			}
		})
	}
}

// A window does not wait for ever for a home that is not drained. What is counted in the end is the same.
func TestLikesDoNotWaitForEver(t *testing.T) {
	t.Parallel()
	m := newMove(t)
	m.set(counter.SetLiked)
	m.spread()
	m.set(counter.SetUnliked)
	m.micros.Add(4 * modelWindow.Microseconds())
	must(t, m.worker.Round(t.Context(), m.place))
	if left := m.redis.Windows(m.place); len(left) > 0 {
		t.Errorf("windows %v still wait", left)
	}
	must(t, m.worker.Round(t.Context(), m.home))
	m.check("in the end", 0)
}
