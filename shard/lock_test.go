package shard_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/twin"
)

var errLost = errors.New("the lock is lost")

// losesLock is a ledger whose lock is lost after it was found to be held once.
type losesLock struct{ flush.WindowLedger }

func (losesLock) LockShard(context.Context, int) (flush.ShardLock, bool, error) {
	asked := 0
	held := func(context.Context) error {
		if asked++; asked > 1 {
			return errLost
		}
		return nil
	}
	return flush.ShardLock{Held: held, Release: func() {}}, true, nil
}

// A worker whose lock is lost leaves the shard to the one that has it now, however many windows are due.
func TestWorkerStopsWithoutItsLock(t *testing.T) {
	t.Parallel()
	f, ledger := openTwin(t), twin.NewLedger(1)
	f.set(t, epochMS)
	for range 3 { // a minute apart, or they would be merged
		f.add(t, 0, entry("a", 1))
		f.advance(t, time.Minute.Milliseconds())
	}
	worker := flush.NewWorker(f.Scripts, losesLock{ledger}, flush.WorkerConfig{
		Shards: 1, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	if err := worker.Round(t.Context(), 0); !errors.Is(err, errLost) {
		t.Errorf("a round without the lock: %v", err)
	}
	drained, err := ledger.Watermark(t.Context(), 0)
	must(t, err)
	equal(t, "last window drained", drained.ID, int64(epochMS))
}
