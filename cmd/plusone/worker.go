package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/plusone-dev/plusone/flush"
)

const (
	// workerConcurrency is how many shards a process drains at a time: enough to keep Postgres busy, few
	// enough to leave connections for loading bases.
	workerConcurrency = 4
	// workerStepTimeout is far above what the largest window takes to apply, since one that never ended in time
	// would never be drained.
	workerStepTimeout = time.Minute
)

// worker runs a flush.Worker between start and stop.
type worker struct {
	windows *flush.Worker
	logger  *slog.Logger
	cancel  context.CancelFunc // nil until started
	done    chan struct{}
}

func newWorker(windows *flush.Worker, logger *slog.Logger) *worker {
	return &worker{windows: windows, logger: logger, done: make(chan struct{})}
}

func (w *worker) start() {
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(w.done)
		w.windows.Run(ctx)
	}()
}

// stop ends the rounds and drains what is due, as far as ctx allows. What is left is safe: it stays in Redis.
func (w *worker) stop(ctx context.Context) {
	if w.cancel == nil {
		return
	}
	w.cancel()
	<-w.done
	if err := w.windows.Drain(ctx); err != nil {
		w.logger.Warn("windows that are due stay in Redis, for the next worker to drain", "error", err)
	}
}
