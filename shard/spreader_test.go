package shard_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// TestHotKeyIsSpreadOverItsWidth: a hot key is spread over as many shards as it is to be when it is found hot, from its
// home on. That stays so, also for servers that are asked for another number. One shard is its home: nothing is spread.
func TestHotKeyIsSpreadOverItsWidth(t *testing.T) {
	t.Parallel()
	const shards, key, threshold = 8, "hot", 100
	home := shard.Home(key, shards)
	for asked, width := range map[int]int{0: shards, 1: 1, 2: 2, shards - 1: shards - 1, shards: shards, shards + 1: shards} {
		t.Run(fmt.Sprint(asked), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(modelStart)) // a bubble begins in 2000, when no marker with a width was to be made
				scripts := &watchedScripts{Scripts: twin.New(shard.RedisConfig{
					Shards: shards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
				}, func() int64 { return time.Now().UnixMicro() })}
				var now atomic.Int64 // over how many the policy in force says
				now.Store(int64(asked))
				open := func() *shard.Store {
					return shard.New(scripts, twin.NewLedger(shards), shard.Config{
						Shards: shards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour,
						HotThreshold: threshold, WidthOf: func(string) int { return int(now.Load()) },
						Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
					})
				}
				// hammer returns the shards that take changes of the key, once the store had the time to find it hot.
				hammer := func(store *shard.Store) map[int]bool {
					for round := range 2 {
						scripts.written = nil
						for range 64 * shards * 2 {
							_, err := store.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: key, Delta: 1}}})
							must(t, err)
						}
						if round == 0 {
							synctest.Wait()
						}
					}
					written := map[int]bool{}
					for _, n := range scripts.written {
						written[n] = true
					}
					return written
				}
				want := map[int]bool{}
				for k := range width {
					want[(home+k)%shards] = true
				}
				first := open()
				defer first.Close(t.Context()) //nolint:errcheck // a test's store
				equal(t, "written by the server that found it hot", hammer(first), want)
				replies, err := scripts.Read(t.Context(), []shard.KeyGroup{{Shard: home, Keys: []string{key}}})
				must(t, err)
				marker := replies[0].Values[0].Marker
				if width == 1 {
					equal(t, "marker", marker, 0)
					return
				}
				equal(t, "marker", marker, shard.NewMarker(marker.Time(), width%shards))
				now.Store(5)
				second := open()
				defer second.Close(t.Context()) //nolint:errcheck // a test's store
				equal(t, "written by another, which would spread it over 5 shards", hammer(second), want)
				equal(t, "written by the first", hammer(first), want)
				equal(t, "count", value(t, second, key), 6*64*shards*2)
			})
		})
	}
}
