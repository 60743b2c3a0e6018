package flush_test

import (
	"context"
	"database/sql"
	"slices"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// TestPostgresWaitsForAnID: another transaction is taking an id that is new to the statement's snapshot. Whether it is counted depends
// on that transaction, and until it has ended no counter is locked.
func TestPostgresWaitsForAnID(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeDirect)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	for _, test := range []struct {
		name string
		end  func(*sql.Tx) error
		want flush.Verdict
	}{
		{"committed", (*sql.Tx).Commit, flush.Verdict{Err: counter.ErrRequestIDReused}},
		{"undone", (*sql.Tx).Rollback, flush.Verdict{Outcome: counter.Applied}},
	} {
		key, id := ledgertest.Key(), ledgertest.V7(time.Now())
		commit := func(changes ...counter.Change) []flush.Verdict {
			verdicts, _, err := ledger.Commit(t.Context(), changes)
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			return verdicts
		}
		commit(ledgertest.Add(key, 1))
		tx, err := db.BeginTx(t.Context(), nil)
		must(t, err)
		_, err = tx.ExecContext(t.Context(), `INSERT INTO request_ids (id, fingerprint, at) VALUES ($1, 1, now())`,
			append([]byte{7}, id.Bytes()...))
		must(t, err)
		verdicts := make(chan []flush.Verdict, 1)
		go func() { verdicts <- commit(ledgertest.With(id, ledgertest.Add(key, 1))) }()
		waitForLock(t, db)
		if _, err := tx.ExecContext(t.Context(), `SELECT FROM counters WHERE key = $1 FOR UPDATE NOWAIT`, key); err != nil {
			t.Errorf("%s: the counter is locked: %v", test.name, err)
		}
		must(t, test.end(tx))
		if got := <-verdicts; !slices.Equal(got, []flush.Verdict{test.want}) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

// TestPostgresLooksIDsUp: the plan of a statement is kept, and those made while there are no ids must do when there are many.
func TestPostgresLooksIDsUp(t *testing.T) {
	t.Parallel()
	url := pgtest.NewDatabase(t)
	ledger := openPostgres(t, url)
	prepare(t, ledger, flush.ModeDirect)
	db := openDB(t, "pgx", url)
	mustExec(t, db, `VACUUM ANALYZE request_ids`) // known to be empty, which a table that is new is not taken for
	statistics := func() (scans, taken int) {
		const sql = `SELECT seq_scan, n_tup_ins FROM pg_stat_user_tables WHERE relname = 'request_ids'`
		must(t, db.QueryRowContext(t.Context(), sql).Scan(&scans, &taken))
		return scans, taken
	}
	before, _ := statistics()
	const groups = 10 // more than get plans of their own
	for range groups {
		change := ledgertest.With(ledgertest.V7(time.Now()), ledgertest.Add("views/a", 1))
		if v, _, err := ledger.Commit(context.Background(), []counter.Change{change}); err != nil || v[0].Outcome != counter.Applied {
			t.Fatal(v, err)
		}
	}
	ledger.Close() // sessions tell what they did when they end
	var scans, taken int
	testproc.Poll(30*time.Second, 5*time.Millisecond, func() bool {
		scans, taken = statistics()
		return taken == groups
	})
	if scans > before || taken != groups {
		t.Errorf("%d of %d ids were taken, and the table was read %d times", taken, groups, scans-before)
	}
}
