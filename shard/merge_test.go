package shard_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// mergeLedger notes which windows were applied in one transaction, by their times since the epoch.
type mergeLedger struct {
	flush.WindowLedger
	applied []string
}

func (l *mergeLedger) Apply(ctx context.Context, w flush.Window) (flush.Applied, error) {
	l.applied = append(l.applied, fmt.Sprintf("%d-%d", (w.Oldest()-epochMS)/1000, (w.ID-epochMS)/1000))
	return l.WindowLedger.Apply(ctx, w)
}

// TestMerge: windows of a backlog are applied together, but for those that must not be.
func TestMerge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		// windows are what each of them holds, one every 20 seconds.
		windows []shard.ShardWrite
		want    []string
	}{
		{"same key", []shard.ShardWrite{part(0, entry("a", 1)), part(0, entry("a", 2)), part(0, entry("b", 3))}, []string{"0-40"}},
		{
			"two minutes",
			[]shard.ShardWrite{part(0, entry("a", 1)), part(0, entry("a", 1)), part(0, entry("a", 1)), part(0, entry("a", 1)), part(0, entry("a", 1))},
			[]string{"0-40", "60-80"},
		},
		{
			"sum that leaves int64",
			[]shard.ShardWrite{part(0, entry("a", 1<<62)), part(0, entry("a", -1<<62)), part(0, entry("b", 1<<62))},
			[]string{"0-0", "20-20", "40-40"},
		},
		{
			"pair set twice",
			[]shard.ShardWrite{
				liking(part(0), like("ann", never)), liking(part(0), like("bob", never)), liking(part(0), unlike("ann", never)),
			},
			[]string{"0-20", "40-40"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, ledger := openTwin(t), &mergeLedger{WindowLedger: twin.NewLedger(scriptConfig.Shards)}
			worker := flush.NewWorker(f.Scripts, ledger, flush.WorkerConfig{
				Shards: scriptConfig.Shards, Window: scriptConfig.Window, StepTimeout: time.Minute,
				Registerer: prometheus.NewRegistry(), Logger: quietLog(),
			})
			for i, w := range test.windows {
				f.set(t, epochMS+int64(i)*20_000)
				equal(t, "written", f.write(t, f.batch(w)).Status, shard.WriteApplied)
			}
			f.set(t, epochMS+100_000)
			must(t, worker.Round(t.Context(), 0))
			equal(t, "applied", ledger.applied, test.want)
			equal(t, "left", len(f.windows(t, 0)), 0)
		})
	}
}
