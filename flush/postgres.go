package flush

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/rawconn"
)

const (
	defaultMaxConns       = 16
	defaultConnectTimeout = 5 * time.Second
	// maxLockConns bounds the flush locks that one process can hold, one a shard.
	maxLockConns = 256
	// lockConnIdle is how long the connection of a released lock is kept for the next one.
	lockConnIdle = time.Minute
)

// PostgresOptions are how a server uses its ledger in Postgres.
type PostgresOptions struct {
	// History is HistoryHour if empty.
	History History
	// HistoryOf, if not nil, tells the history of keys that have one of their own.
	HistoryOf HistoryOf
	// DedupeWindow is counter.DefaultDedupeWindow if 0.
	DedupeWindow time.Duration
	// MaxConns bounds the connections, not counting one for each flush lock held; 0 is 16.
	MaxConns int
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

// Postgres is a ledger in one schema of a Postgres database: the first that the connection's search_path
// names. Any number of servers may use it at once.
//
// Errors wrap those of the counter package where one fits, and always the driver's.
type Postgres struct {
	pool *pgxpool.Pool
	// locks is a pool apart, so that workers holding locks cannot keep each other from the connections
	// that they need to finish.
	locks  *pgxpool.Pool
	opts   PostgresOptions
	logger *slog.Logger
	// lookUntil is until when new keys are looked for before they are inserted, in Unix ns.
	lookUntil atomic.Int64
	// prints is the key of fingerprints: zero until EnsureSettings.
	prints atomic.Pointer[counter.FingerprintKey]
}

var (
	_ DirectLedger = (*Postgres)(nil)
	_ WindowLedger = (*Postgres)(nil)
)

// OpenPostgres prepares to use the database at url, a connection string or URL as libpq takes it, and
// connects on first use. A pooler between must pool by session if flush locks are used.
func OpenPostgres(ctx context.Context, url string, opts PostgresOptions) (*Postgres, error) {
	opts.History = cmp.Or(opts.History, HistoryHour)
	opts.DedupeWindow = cmp.Or(opts.DedupeWindow, counter.DefaultDedupeWindow)
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	if err := opts.History.validate(); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		// The driver's error quotes the connection string, with the password hidden as far as it could
		// parse it: not far enough to be shown.
		return nil, fmt.Errorf("the Postgres URL is not valid: want postgres://user:password@host:port/database")
	}
	config.MaxConns = int32(cmp.Or(opts.MaxConns, defaultMaxConns))
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, defaultConnectTimeout)
	config.ConnConfig.DialFunc = rawconn.Over(config.ConnConfig.DialFunc)
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "plusone"
	}
	lockConfig := config.Copy()
	lockConfig.MaxConns = maxLockConns
	lockConfig.MinConns = 0
	lockConfig.MaxConnIdleTime = lockConnIdle

	p := &Postgres{opts: opts, logger: opts.Logger}
	p.prints.Store(new(counter.FingerprintKey))
	if p.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("open Postgres: %w", err)
	}
	if p.locks, err = pgxpool.NewWithConfig(ctx, lockConfig); err != nil {
		p.pool.Close()
		return nil, fmt.Errorf("open Postgres: %w", err)
	}
	return p, nil
}

// Close closes all connections and waits for those in use.
func (p *Postgres) Close() {
	p.locks.Close()
	p.pool.Close()
}

// Ping reports whether the database answers.
func (p *Postgres) Ping(ctx context.Context) error {
	if err := p.pool.Ping(ctx); err != nil {
		return postgresError("ping", err)
	}
	return nil
}

// Migrate brings the schema up to date. Servers that start at the same time take turns.
func (p *Postgres) Migrate(ctx context.Context) error {
	// Servers retry every second, for two minutes, while another one migrates.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	db := stdlib.OpenDB(*p.pool.Config().ConnConfig)
	err = migrate(ctx, db, goose.DialectPostgres, "postgres", goose.WithSessionLocker(locker), goose.WithSlog(p.logger))
	if closeErr := db.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("migrate: %w", closeErr)
	}
	if err != nil {
		return postgresError("migrate", err)
	}
	return nil
}

// FingerprintKey is the key of the deployment's fingerprints, once EnsureSettings has found it.
func (p *Postgres) FingerprintKey() counter.FingerprintKey { return *p.prints.Load() }

// EnsureSettings records the settings in a new ledger, and otherwise returns a SettingsError if they are
// not those recorded. Servers that start at the same time agree on one.
func (p *Postgres) EnsureSettings(ctx context.Context, want Settings) error {
	var mismatch error
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		// The one who comes second waits here, and then sees what the first has recorded.
		for _, row := range want.record() {
			if _, err := tx.Exec(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING`, row.name, row.value); err != nil {
				return err
			}
		}
		rows, err := tx.Query(ctx, `SELECT name, value FROM settings`)
		if err != nil {
			return err
		}
		recorded := make(map[string]string)
		var name, value string
		if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { recorded[name] = value; return nil }); err != nil {
			return err
		}
		var key *counter.FingerprintKey
		if key, mismatch = want.use(recorded); mismatch != nil {
			return mismatch
		}
		p.prints.Store(key)
		if want.Mode != ModeSharded {
			return nil
		}
		_, err = tx.Exec(ctx, `INSERT INTO shards (shard) SELECT generate_series(0, $1::int - 1) ON CONFLICT DO NOTHING`, want.Shards)
		return err
	})
	switch {
	case mismatch != nil:
		return mismatch
	case err != nil:
		return postgresError("read settings", err)
	}
	return nil
}
