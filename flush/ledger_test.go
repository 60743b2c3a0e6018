package flush_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/shard"
)

// shardCount is the number of shards of the ledgers under test.
const shardCount = ledgertest.Shards

func TestMain(m *testing.M) {
	runAsLedgerHolder()
	goleak.VerifyTestMain(m)
}

func TestDirectLedgers(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { ledgertest.ExerciseDirect(t, newSQLiteInstance) })
	t.Run("Postgres", func(t *testing.T) { ledgertest.ExerciseDirect(t, newPostgresInstance) })
}

func TestWindowLedgers(t *testing.T) {
	ledgertest.ExerciseWindows(t, func(t *testing.T) ledgertest.WindowInstance {
		url := newPostgres(t, flush.ModeSharded)
		return ledgertest.WindowInstance{
			WindowLedger: openPostgres(t, url), Other: openPostgres(t, url), DB: openDB(t, "pgx", url),
		}
	})
}

func newPostgresInstance(t *testing.T) ledgertest.DirectInstance {
	url := newPostgres(t, flush.ModeDirect)
	db := openDB(t, "pgx", url)
	return ledgertest.DirectInstance{
		DirectLedger: openPostgres(t, url), Other: openPostgres(t, url), DB: db,
		AgeClaims: func(t testing.TB, by time.Duration) {
			seconds := by.Seconds()
			mustExec(t, db, `UPDATE request_ids SET at = at - make_interval(secs => $1)`, seconds)
			mustExec(t, db, `UPDATE once_claims SET expires = expires - make_interval(secs => $1)`, seconds)
		},
	}
}

func newSQLiteInstance(t *testing.T) ledgertest.DirectInstance {
	path := filepath.Join(t.TempDir(), "plus one%20?#.db") // a name that would not survive in a URL as it is
	ledger := openSQLite(t, path, flush.SQLiteOptions{})
	db := openDB(t, "sqlite", "file:"+filepath.Join(filepath.Dir(path), "plus%20one%2520%3F%23.db")+"?_pragma=busy_timeout(5000)")
	return ledgertest.DirectInstance{
		DirectLedger: ledger, Other: ledger, DB: db,
		AgeClaims: func(t testing.TB, by time.Duration) {
			mustExec(t, db, `UPDATE request_ids SET at = at - ?`, by.Milliseconds())
			mustExec(t, db, `UPDATE once_claims SET expires = expires - ?`, by.Milliseconds())
		},
	}
}

// newPostgres makes a database with a ledger and returns its URL.
func newPostgres(t testing.TB, mode flush.Mode) string {
	t.Helper()
	url := pgtest.NewDatabase(t)
	prepare(t, openPostgres(t, url), mode)
	return url
}

func settings(mode flush.Mode) flush.Settings {
	s := flush.Settings{Mode: mode, DedupeWindow: ledgertest.Dedupe}
	if mode == flush.ModeSharded {
		s.Shards, s.Window = shardCount, 5*time.Second
	}
	return s
}

func prepare(t testing.TB, ledger *flush.Postgres, mode flush.Mode) {
	t.Helper()
	if err := ledger.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ledger.EnsureSettings(t.Context(), settings(mode)); err != nil {
		t.Fatal(err)
	}
}

// openPostgres opens a handle that the test's cleanup closes.
func openPostgres(t testing.TB, url string) *flush.Postgres {
	t.Helper()
	return openPostgresWith(t, url, flush.HistoryHour)
}

func openPostgresWith(t testing.TB, url string, history flush.History) *flush.Postgres {
	t.Helper()
	ledger, err := flush.OpenPostgres(t.Context(), url, flush.PostgresOptions{History: history, DedupeWindow: ledgertest.Dedupe, MaxConns: 6})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ledger.Close)
	return ledger
}

func openSQLite(t testing.TB, path string, opts flush.SQLiteOptions) *flush.SQLite {
	t.Helper()
	opts.DedupeWindow = ledgertest.Dedupe
	ledger, err := flush.OpenSQLite(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ledger.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := ledger.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ledger.EnsureSettings(t.Context(), settings(flush.ModeEmbedded)); err != nil {
		t.Fatal(err)
	}
	return ledger
}

// window is a window that has only deltas.
func window(n int, id int64, deltas map[string]int64) flush.Window {
	return flush.Window{Shard: n, ID: id, WindowPart: shard.WindowPart{Deltas: deltas}}
}

func openDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", query, err))
	}
}
