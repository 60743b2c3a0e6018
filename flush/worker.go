package flush

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/shard"
)

// WorkerConfig configures a Worker.
type WorkerConfig struct {
	Shards int
	// Window is the window length.
	Window time.Duration
	// Interval is the pause between two rounds of a shard, and so how long a rollback of Redis may go
	// unnoticed.
	Interval time.Duration
	// Concurrency is how many shards are drained at a time; each takes a connection to hold the shard's lock
	// and one to work with.
	Concurrency int
	// StepTimeout bounds each step: one script, or one ledger transaction.
	StepTimeout time.Duration
	Registerer  prometheus.Registerer
	Logger      *slog.Logger
}

// Worker drains sealed windows from Redis into the ledger, exactly once each (docs/design.md has the rules).
// Any number of workers may run, and be killed, at any time.
type Worker struct {
	scripts shard.Scripts
	ledger  WindowLedger
	cfg     WorkerConfig
	metrics *workerMetrics
	failing sync.Map // shard to struct{}, to log a failure once and not every round
	marked  sync.Map // key to struct{}: spread keys whose homes are not waited for
}

// NewWorker makes a worker; Run starts it.
func NewWorker(scripts shard.Scripts, ledger WindowLedger, cfg WorkerConfig) *Worker {
	return &Worker{scripts: scripts, ledger: ledger, cfg: cfg, metrics: newWorkerMetrics(cfg)}
}

// Run drains all shards, round after round, until ctx is done. A round that fails is repeated after
// Interval.
func (w *Worker) Run(ctx context.Context) {
	var workers sync.WaitGroup
	for first := range w.cfg.Concurrency {
		workers.Go(func() {
			ticker := time.NewTicker(w.cfg.Interval)
			defer ticker.Stop()
			for {
				for n := first; n < w.cfg.Shards && ctx.Err() == nil; n += w.cfg.Concurrency {
					w.report(ctx, n, w.Round(ctx, n))
				}
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
			}
		})
	}
	workers.Wait()
}

// Drain does one last round of each shard, as much as ctx allows. What is left stays in Redis and is drained by
// another worker or after the next start.
func (w *Worker) Drain(ctx context.Context) error {
	var errs []error
	for n := range w.cfg.Shards {
		errs = append(errs, w.Round(ctx, n))
	}
	return errors.Join(errs...)
}

// report logs the first failure of a shard and its recovery; every failure is counted.
func (w *Worker) report(ctx context.Context, n int, err error) {
	_, failing := w.failing.Load(n)
	switch {
	case err != nil && ctx.Err() == nil:
		w.metrics.errors.Inc()
		if !failing {
			w.failing.Store(n, struct{}{})
			w.cfg.Logger.ErrorContext(ctx, "flush of shard fails, will be tried until it succeeds", "shard", n, "error", err)
		}
	case err == nil && failing:
		w.failing.Delete(n)
		w.cfg.Logger.InfoContext(ctx, "flush of shard works again", "shard", n)
	}
}

// Round drains the sealed windows of a shard, unless another worker is at it. It may fail or be killed
// between any two steps: the next round, by whichever worker, goes on from there.
func (w *Worker) Round(ctx context.Context, n int) error {
	failpoint.Before("lock")
	step, cancel := context.WithTimeout(ctx, w.cfg.StepTimeout)
	began := time.Now()
	lock, ok, err := w.ledger.LockShard(step, n)
	w.metrics.step(stepLock, began)
	cancel()
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if !ok {
		w.metrics.elsewhere(n)
		return nil
	}
	defer lock.Release()
	failpoint.After("lock")
	for {
		more, err := w.pass(ctx, n, lock)
		if err != nil || !more {
			return err
		}
	}
}

// pass drains the windows that one Seal returns, and reports whether there may be more. Before each, or those that it
// merges, it looks whether the lock is still its own: two workers at one shard discard each other's windows, with all
// cached bases, which makes a backlog grow that neither gets to the end of.
func (w *Worker) pass(ctx context.Context, n int, lock ShardLock) (more bool, err error) {
	s := w.steps(ctx)
	var watermark shard.SealedWindow
	var sealed shard.SealReply
	s.do("watermark", func(ctx context.Context) (err error) {
		watermark, err = w.ledger.Watermark(ctx, n)
		return err
	})
	s.do("seal", func(ctx context.Context) (err error) {
		sealed, err = w.scripts.Seal(ctx, n, watermark, random())
		return err
	})
	if sealed.RolledBack {
		w.rolledBack(ctx, n)
	}
	if sealed.RestoreDue {
		s.do("restore", func(ctx context.Context) error {
			markers, err := w.ledger.Markers(ctx, n)
			if err != nil {
				return err
			}
			return w.scripts.RestoreMarkers(ctx, n, markers)
		})
	}
	s.do("sweep", func(ctx context.Context) error { return w.scripts.Sweep(ctx, n) })
	if s.err != nil {
		return false, s.err
	}
	w.metrics.observe(n, sealed)
	if len(sealed.Sealed) == 0 {
		w.metrics.progressed(n)
	}
	d := &drain{worker: w, shard: n, now: sealed.Time, due: sealed.Sealed}
	more = sealed.More
	for len(d.due) > 0 {
		s.do("hold", lock.Held)
		if s.err != nil {
			return false, s.err
		}
		done, err := d.next(ctx, watermark.ID)
		if err != nil || done == postponed {
			return false, err
		}
		w.metrics.progressed(n)
		more = more || done == discarded // what lies behind it may be a rollback, which the next pass notices
	}
	return more, nil
}

// steps runs one step after another, each within the step timeout, until one fails.
type steps struct {
	ctx     context.Context //nolint:containedctx // lives for one pass
	timeout time.Duration
	metrics *workerMetrics
	err     error // of the step that failed
}

func (w *Worker) steps(ctx context.Context) *steps {
	return &steps{ctx: ctx, timeout: w.cfg.StepTimeout, metrics: w.metrics}
}

func (s *steps) do(name string, f func(context.Context) error) {
	if s.err != nil {
		return
	}
	failpoint.Before(name)
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	defer s.metrics.step(name, time.Now())
	if err := f(ctx); err != nil {
		s.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	failpoint.After(name)
}

func (w *Worker) rolledBack(ctx context.Context, n int) {
	w.metrics.rollbacks.Inc()
	w.cfg.Logger.ErrorContext(ctx, "redis went back in time: changes that it had and the ledger has not are lost; "+
		"nothing is counted twice; request ids made before now are refused for a dedupe window", "shard", n)
}

// random names a new generation of bases, or a sealed window: it was never used before, whatever Redis
// remembers.
func random() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
