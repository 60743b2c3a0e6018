package bench_test

import (
	"fmt"
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
	for from := 0; from < len(keys); from += 10_000 {
		var entries []client.Entry
		for _, key := range keys[from:min(from+10_000, len(keys))] {
			entries = append(entries, client.Entry{Key: key, Delta: 1})
		}
		if _, err := c.BatchIncrement(t.Context(), entries); err != nil {
			t.Fatal(err)
		}
	}
	pending := float64(redis.Info("used_memory"))
	for from := 0; from < len(keys); from += 1000 {
		if _, err := c.BatchGet(t.Context(), keys[from:min(from+1000, len(keys))]); err != nil {
			t.Fatal(err)
		}
	}
	cached := float64(redis.Info("used_memory"))
	n := float64(len(keys))
	table.add(row{
		work: fmt.Sprintf("%d live counters", len(keys)), target: "server bounded by its cache of 64 MiB",
		ratios: fmt.Sprintf("server heap %.0f MiB, resident %.0f MiB; Redis %.0f B a pending key, %.0f B a cached key",
			i.Metric("go_memstats_heap_inuse_bytes")/(1<<20), i.Metric("process_resident_memory_bytes")/(1<<20),
			(pending-empty)/n, (cached-pending)/n),
	})
}
