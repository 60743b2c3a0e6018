package flush_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// waitsForLock reports whether a session of the database waits for a lock.
func waitsForLock(t *testing.T, db *sql.DB) (waits bool) {
	t.Helper()
	const query = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`
	must(t, db.QueryRowContext(t.Context(), query).Scan(&waits))
	return waits
}

// TestPostgresApplyWaitsForTheWatermark: a transaction that raises the watermark is under way when another worker applies
// the same window. It must wait and find the window applied.
func TestPostgresApplyWaitsForTheWatermark(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `UPDATE shards SET watermark = 5 WHERE shard = 1`); err != nil {
		t.Fatal(err)
	}
	type result struct {
		applied flush.Applied
		err     error
	}
	applied := make(chan result, 1)
	go func() {
		a, err := ledger.Apply(t.Context(), window(1, 5, map[string]int64{"views/a": 1}))
		applied <- result{a, err}
	}()
	if !testproc.Poll(30*time.Second, time.Millisecond, func() bool { return waitsForLock(t, db) }) {
		t.Error("nothing waits for the watermark")
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := <-applied; got.err != nil || got.applied.OK || got.applied.Previous != 5 {
		t.Errorf("the window was applied a second time: %+v", got)
	}
}
