package storetest_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/storetest"
)

var quiet = slog.New(slog.DiscardHandler)

const dedupe = counter.DefaultDedupeWindow

func TestEmbedded(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, dedupe, func(t *testing.T) *storetest.Fixture {
		ledger, err := flush.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "plusone.db"), flush.SQLiteOptions{DedupeWindow: dedupe})
		must(t, err)
		t.Cleanup(func() { _ = ledger.Close() })
		must(t, ledger.Migrate(t.Context()))
		must(t, ledger.EnsureSettings(t.Context(), flush.Settings{Mode: flush.ModeEmbedded, DedupeWindow: dedupe}))
		store := newDirect(t, ledger)
		return &storetest.Fixture{
			Open: func(*testing.T) storetest.Store { return store },
			SetTotal: func(t *testing.T, key string, total int64) {
				_, err := store.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: key, Delta: total}}})
				must(t, err)
			},
			AtomicBatches: true,
		}
	})
}

func TestDirect(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, dedupe, func(t *testing.T) *storetest.Fixture {
		url := pgtest.NewDatabase(t)
		first := openPostgres(t, url, flush.Settings{Mode: flush.ModeDirect, DedupeWindow: dedupe})
		opened := false
		return &storetest.Fixture{
			Open: func(t *testing.T) storetest.Store {
				ledger := first
				if opened {
					ledger = openPostgres(t, url, flush.Settings{Mode: flush.ModeDirect, DedupeWindow: dedupe})
				}
				opened = true
				return newDirect(t, ledger)
			},
			SetTotal:      func(t *testing.T, key string, total int64) { setTotal(t, url, key, 0, total) },
			AtomicBatches: true,
		}
	})
}

func newDirect(t *testing.T, ledger flush.DirectLedger) *flush.Direct {
	store, err := flush.NewDirect(ledger, flush.DirectConfig{Logger: quiet})
	must(t, err)
	t.Cleanup(func() { _ = store.Close(context.WithoutCancel(t.Context())) })
	return store
}

func openPostgres(t *testing.T, url string, settings flush.Settings) *flush.Postgres {
	ledger, err := flush.OpenPostgres(t.Context(), url, flush.PostgresOptions{DedupeWindow: dedupe, MaxConns: 8, Logger: quiet})
	must(t, err)
	t.Cleanup(ledger.Close)
	must(t, ledger.Migrate(t.Context()))
	must(t, ledger.EnsureSettings(t.Context(), settings))
	return ledger
}

func setTotal(t *testing.T, url, key string, shard int, total int64) {
	conn := pgtest.Connect(t, url)
	_, err := conn.Exec(t.Context(), `INSERT INTO counters (key, shard, count, updated_at) VALUES ($1, $2, $3, now())`, key, shard, total)
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
