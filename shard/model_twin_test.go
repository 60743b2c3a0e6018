package shard_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// modelStart is the Redis clock at the start of a world.
var modelStart = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// twinRedis is the in-memory twin as a modelRedis.
type twinRedis struct {
	*twin.Redis
	micros *atomic.Int64
}

func newTwinRedis() *twinRedis {
	micros := &atomic.Int64{}
	micros.Store(modelStart.UnixMicro())
	return &twinRedis{
		Redis: twin.New(shard.RedisConfig{Shards: 1, Window: modelWindow, Dedupe: modelDedupe, MaxSpread: 10}, func() int64 {
			return micros.Add(1)
		}),
		micros: micros,
	}
}

func (r *twinRedis) Scripts() shard.Scripts  { return r.Redis }
func (r *twinRedis) Micros() int64           { return r.micros.Load() }
func (r *twinRedis) Advance(d time.Duration) { r.micros.Add(d.Microseconds()) }
func (r *twinRedis) Windows() []int64        { return r.Redis.Windows(0) }

func (r *twinRedis) Snapshot() (restore func()) {
	s := r.Redis.Snapshot()
	return func() { r.Restore(s) }
}

func TestModelOnTwin(t *testing.T) {
	t.Parallel()
	for name, rollback := range map[string]bool{"steady": false, "rollback": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exerciseModel(t, *modelRuns, rollback, func(*testing.T) (modelRedis, modelLedger) {
				return newTwinRedis(), twin.NewLedger(1)
			})
		})
	}
}
