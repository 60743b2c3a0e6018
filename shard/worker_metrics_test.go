package shard_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/twin"
)

// takenLock is a ledger whose lock another worker may have.
type takenLock struct {
	flush.WindowLedger
	taken *bool
}

func (l takenLock) LockShard(ctx context.Context, n int) (flush.ShardLock, bool, error) {
	if *l.taken {
		return flush.ShardLock{}, false, nil
	}
	return l.WindowLedger.LockShard(ctx, n)
}

// A worker that only finds another one at the shard does not show what it saw long ago, and claims no progress.
func TestWorkerShowsWhatItSees(t *testing.T) {
	t.Parallel()
	f, metrics, taken := openTwin(t), prometheus.NewRegistry(), false
	ledger := takenLock{twin.NewLedger(1), &taken}
	worker := flush.NewWorker(f.Scripts, ledger, flush.WorkerConfig{
		Shards: 1, Window: windowMS * time.Millisecond, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: metrics, Logger: slog.New(slog.DiscardHandler),
	})
	const lag, backlog, progress = "plusone_flush_lag_seconds", "plusone_flush_backlog_windows", "plusone_flush_last_success_timestamp_seconds"
	equal(t, "window", gauge(t, metrics, "plusone_flush_window_length_seconds"), float64(windowMS)/1000)
	began := gauge(t, metrics, progress)
	if since := time.Since(time.UnixMicro(int64(began * 1e6))); since < 0 || since > time.Minute {
		t.Errorf("progress begins %v ago", since)
	}
	f.set(t, epochMS)
	f.add(t, 0, entry("a", 1))
	f.advance(t, 4*windowMS)

	taken = true
	must(t, worker.Round(t.Context(), 0))
	equal(t, "progress of another worker", gauge(t, metrics, progress), began)
	equal(t, "lag of another worker", gauge(t, metrics, lag), 0.)

	taken = false
	must(t, worker.Round(t.Context(), 0))
	equal(t, "lag", gauge(t, metrics, lag), 4*float64(windowMS)/1000)
	equal(t, "backlog", gauge(t, metrics, backlog), 1.)
	drained := gauge(t, metrics, progress)
	if drained <= began {
		t.Error("a window was drained without progress")
	}
	taken = true
	must(t, worker.Round(t.Context(), 0))
	equal(t, "lag that the other one shows", gauge(t, metrics, lag), 0.)
	equal(t, "backlog that the other one shows", gauge(t, metrics, backlog), 0.)
	equal(t, "progress that the other one makes", gauge(t, metrics, progress), drained)

	taken = false
	must(t, worker.Round(t.Context(), 0))
	if gauge(t, metrics, progress) <= drained {
		t.Error("a look at a shard without due windows is no progress")
	}
}

// gauge is the value of a gauge, of its first series if it has labels.
func gauge(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("%s does not exist", name)
	return 0
}
