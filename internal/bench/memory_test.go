package bench_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

const liveCounters = 1_000_000

// TestMemory measures what a server and Redis hold when all counters were changed and read.
func TestMemory(t *testing.T) {
	redis := redistest.Start(t)
	i := plusonetest.Start(t, build(t), "--redis-url="+redis.URL(), "--postgres-url="+pgtest.NewDatabase(t), "--window=1h")
	c := plusonetest.Dial(t, []*plusonetest.Instance{i})
	empty := float64(redis.Info("used_memory"))
	keys := keyNames(scaled(liveCounters))
	changeAll(t, c, keys)
	pending := float64(redis.Info("used_memory"))
	for chunk := range slices.Chunk(keys, 1000) {
		if _, err := c.BatchGet(t.Context(), chunk); err != nil {
			t.Fatal(err)
		}
	}
	cached := float64(redis.Info("used_memory"))
	n := float64(len(keys))
	// What the last collection has left, from when it wants the next one.
	live := i.Metric("go_memstats_next_gc_bytes") / (1 + i.Metric("go_gc_gogc_percent")/100)
	table.add(row{
		work: fmt.Sprintf("%d live counters", len(keys)), target: "server bounded by its cache of 64 MiB",
		ratios: fmt.Sprintf("server heap %.0f MiB live, %.0f MiB with garbage, resident %.0f MiB; Redis %.0f B a pending key, %.0f B a cached key",
			live/(1<<20), i.Metric("go_memstats_heap_inuse_bytes")/(1<<20), i.Metric("process_resident_memory_bytes")/(1<<20),
			(pending-empty)/n, (cached-pending)/n),
	})
}

// changeAll adds 1 to each key, by the largest batches there are.
func changeAll(t *testing.T, c *client.Client, keys []string) {
	t.Helper()
	for chunk := range slices.Chunk(keys, 10_000) {
		entries := make([]client.Entry, len(chunk))
		for i, key := range chunk {
			entries[i] = client.Entry{Key: key, Delta: 1}
		}
		if _, err := c.BatchIncrement(t.Context(), entries); err != nil {
			t.Fatal(err)
		}
	}
}
