package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/limit"
	"github.com/plusone-dev/plusone/server"
	"github.com/plusone-dev/plusone/shard"
)

// liveStore is a store that the server serves.
type liveStore interface {
	server.Store
	// Close finishes what was accepted, bounded by ctx.
	Close(ctx context.Context) error
}

// ledgerOptions are how a ledger is opened.
type ledgerOptions struct {
	storeFlags
	data     string // the file of SQLite
	history  flush.History
	policies *policies // may be nil
	maxConns int       // of Postgres, 0 for its default
	logger   *slog.Logger
	registry prometheus.Registerer // of the metrics of Postgres, nil for none
}

// openSQLite opens, migrates and checks the ledger of embedded mode.
func openSQLite(ctx context.Context, o ledgerOptions) (*flush.SQLite, error) {
	ledger, err := flush.OpenSQLite(ctx, o.data, flush.SQLiteOptions{
		History: o.history, HistoryOf: o.policies.historyOf(), DedupeWindow: o.DedupeWindow, Logger: o.logger,
	})
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, ledger, o.settings(flush.ModeEmbedded)); err != nil {
		return nil, errors.Join(err, ledger.Close())
	}
	return ledger, nil
}

// openPostgres opens, migrates and checks the ledger of direct and sharded mode.
func openPostgres(ctx context.Context, mode flush.Mode, o ledgerOptions) (*flush.Postgres, error) {
	ledger, err := flush.OpenPostgres(ctx, o.PostgresURL, flush.PostgresOptions{
		History: o.history, HistoryOf: o.policies.historyOf(), DedupeWindow: o.DedupeWindow, MaxConns: o.maxConns, Logger: o.logger,
	})
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, ledger, o.settings(mode)); err != nil {
		ledger.Close()
		return nil, err
	}
	if o.registry != nil {
		if err := o.registry.Register(ledger.Metrics()); err != nil {
			ledger.Close()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return ledger, nil
}

type migrator interface {
	Migrate(ctx context.Context) error
	EnsureSettings(ctx context.Context, want flush.Settings) error
}

func prepare(ctx context.Context, ledger migrator, settings flush.Settings) error {
	if err := ledger.Migrate(ctx); err != nil {
		return err
	}
	return ledger.EnsureSettings(ctx, settings)
}

// deployment is a mode's store and worker, as far as a process has them.
type deployment struct {
	mode  flush.Mode
	store liveStore // nil for a worker alone
	// reports is the ledger.
	reports server.Reports
	worker  *worker        // nil if this process does not drain windows
	redis   rueidis.Client // nil if the mode has none
	gate    *gate          // nil for a worker alone
	limiter *limit.Redis   // of the gate, nil if the mode or the gate has none
	admin   *server.Admin  // nil for a worker alone
	close   func() error
	// observers are of a server.
	observers *observers
}

// stop finishes what was accepted and drains what is due, bounded by ctx, and closes everything.
func (d *deployment) stop(ctx context.Context) error {
	var err error
	if d.store != nil {
		err = d.store.Close(ctx)
	}
	if d.gate != nil {
		err = errors.Join(err, d.gate.close(ctx))
	}
	if d.worker != nil {
		d.worker.stop(ctx)
	}
	return errors.Join(err, d.close(), d.observers.stop(ctx))
}

// openEmbedded opens embedded mode.
func openEmbedded(ctx context.Context, o ledgerOptions, registry *prometheus.Registry) (*deployment, error) {
	ledger, err := openSQLite(ctx, o)
	if err != nil {
		return nil, err
	}
	store, err := flush.NewDirect(ledger, flush.DirectConfig{Registry: registry, Logger: o.logger})
	if err != nil {
		return nil, errors.Join(err, ledger.Close())
	}
	return &deployment{
		mode: flush.ModeEmbedded, store: store, reports: ledger, admin: &server.Admin{Store: ledger, Ledger: ledger}, close: ledger.Close,
	}, nil
}

// openDirect opens direct mode.
func openDirect(ctx context.Context, o ledgerOptions, registry *prometheus.Registry) (*deployment, error) {
	o.registry = registry
	ledger, err := openPostgres(ctx, flush.ModeDirect, o)
	if err != nil {
		return nil, err
	}
	store, err := flush.NewDirect(ledger, flush.DirectConfig{Registry: registry, Logger: o.logger})
	if err != nil {
		ledger.Close()
		return nil, err
	}
	return &deployment{
		mode: flush.ModeDirect, store: store, reports: ledger, admin: &server.Admin{Store: ledger, Ledger: ledger},
		close: func() error { ledger.Close(); return nil },
	}, nil
}

// shardedOptions are how sharded mode is opened: with a store, a worker or both.
type shardedOptions struct {
	ledgerOptions
	store  *shardFlags
	worker *workerFlags
}

// openSharded opens sharded mode.
func openSharded(ctx context.Context, o shardedOptions, registry *prometheus.Registry) (*deployment, error) {
	o.registry = registry
	ledger, err := openPostgres(ctx, flush.ModeSharded, o.ledgerOptions)
	if err != nil {
		return nil, err
	}
	client, err := openRedis(ctx, o.RedisURL, o.logger)
	if err != nil {
		ledger.Close()
		return nil, err
	}
	d := &deployment{mode: flush.ModeSharded, reports: ledger, redis: client, close: func() error {
		client.Close()
		ledger.Close()
		return nil
	}}
	config := shard.RedisConfig{Shards: o.Shards, Window: o.Window, Dedupe: o.DedupeWindow}
	if o.store != nil {
		config.WaitReplicas, config.WaitTimeout = o.store.RedisWaitReplicas, o.store.RedisWaitTimeout
		config.MaxSpread = o.store.MaxSpreadKeys
	}
	scripts, err := shard.NewRedis(client, config)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare Redis scripts: %w", err), d.close())
	}
	if o.store != nil {
		config := shard.Config{
			Shards: o.Shards, Dedupe: o.DedupeWindow, Cluster: scripts.Cluster(),
			BaseTTL: o.store.BaseTTL, MissingTTL: o.store.MissingTTL, HotThreshold: o.store.HotThreshold,
			HotThresholdOf: o.policies.hotThresholdOf(), WidthOf: o.policies.widthOf(), FingerprintKey: ledger.FingerprintKey(),
			Metrics: shard.NewMetrics(registry), Logger: o.logger,
		}
		if o.policies != nil {
			d.limiter = limit.NewRedis(client, limit.RedisConfig{
				Tags: shard.Tags(o.Shards), Cluster: config.Cluster, Metrics: limit.NewMetrics(registry),
			})
			config.Redeem = d.limiter.Redeem
		}
		store := shard.New(scripts, ledger, config)
		d.store, d.admin = store, &server.Admin{Store: store, Ledger: ledger}
	}
	if o.worker != nil {
		d.worker = newWorker(flush.NewWorker(scripts, ledger, flush.WorkerConfig{
			Shards: o.Shards, Window: o.Window, Interval: o.worker.FlushInterval,
			Concurrency: min(o.Shards, workerConcurrency), StepTimeout: workerStepTimeout,
			Registerer: registry, Logger: o.logger,
		}), o.logger)
	}
	return d, nil
}
