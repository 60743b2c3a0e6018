package shard_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// watchedScripts notes which shards are written, and fails reads at will.
type watchedScripts struct {
	shard.Scripts
	written []int
	mute    atomic.Bool
}

func (w *watchedScripts) Write(ctx context.Context, b *shard.WriteBatch) (shard.WriteReply, error) {
	for i := range b.Shards {
		w.written = append(w.written, b.Shards[i].Shard)
	}
	return w.Scripts.Write(ctx, b)
}

func (w *watchedScripts) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	if w.mute.Load() {
		return nil, errFault
	}
	return w.Scripts.Read(ctx, groups)
}

// TestMarkersAreConfirmed: a server relies on a marker for as long as the key's home confirms it, and no longer. A
// rollback may have taken the marker from all others.
func TestMarkersAreConfirmed(t *testing.T) {
	t.Parallel()
	const shards, key = 64, "hot"
	home := shard.Home(key, shards)
	synctest.Test(t, func(t *testing.T) {
		redis := twin.New(shard.RedisConfig{
			Shards: shards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
		}, func() int64 { return time.Now().UnixMicro() })
		scripts := &watchedScripts{Scripts: redis}
		store := shard.New(scripts, twin.NewLedger(shards), shard.Config{
			Shards: shards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour,
			Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
		})
		defer store.Close(t.Context()) //nolint:errcheck // a test's store
		// send returns how many of 20 changes did not go to home, and how many scripts they took.
		send := func() (away, scriptsRun int) {
			for range 20 {
				scripts.written = nil
				_, err := store.Apply(t.Context(), counter.Change{
					Entries: []counter.Entry{{Key: key, Delta: 1}}, RequestID: counter.ParseRequestID(storetest.NewID(time.Now())),
				})
				must(t, err)
				if !slices.Contains(scripts.written, home) {
					away++
				}
				scriptsRun += len(scripts.written)
			}
			return away, scriptsRun
		}
		_, err := redis.Spread(t.Context(), home, []string{key}, 0)
		must(t, err)
		must(t, store.Counts(t.Context(), []string{key})[0].Err)
		time.Sleep(10 * time.Minute)
		// By chance, one id in 64 is of home.
		if away, n := send(); away < 10 || n != 20 {
			t.Errorf("%d of 20 changes left home, whose marker has been confirmed, by %d scripts", away, n)
		}

		scripts.mute.Store(true)
		time.Sleep(31 * time.Second)
		redis.FlushAll()
		if away, _ := send(); away > 0 {
			t.Errorf("%d of 20 changes left home, whose marker has not been confirmed", away)
		}
	})
}
