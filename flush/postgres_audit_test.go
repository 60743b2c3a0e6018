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
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/shard"
)

// TestRepairBesideTransactions repairs a key of which other transactions have changed one half: likes and not
// yet totals, or totals and not yet history.
func TestRepairBesideTransactions(t *testing.T) {
	t.Parallel()
	const (
		likes  = `INSERT INTO likes (key, actor, liked, at) VALUES ('k', 'new', true, now())`
		totals = `INSERT INTO counters AS c (key, shard, count, likes, updated_at) VALUES ('k', 0, 4, 1, now())
			ON CONFLICT (key, shard) DO UPDATE SET count = c.count + 4, likes = c.likes + 1`
		history = `INSERT INTO history AS h (key, bucket, shard, delta) VALUES ('k', now(), 0, 4)
			ON CONFLICT (key, bucket, shard) DO UPDATE SET delta = h.delta + 4`
	)
	for _, test := range []struct {
		name, plant string
		// done is what the other transaction has done when the repair begins, left what it does then.
		done, left []string
		waits      bool // the repair, for the other transaction
		want       int64
		wantLikes  int64
	}{
		{"likes", `UPDATE counters SET count = 50, likes = 9`, []string{likes}, []string{totals, history}, false, 11, 2},
		{"totals", `UPDATE counters SET count = 50, likes = 9`, []string{likes, totals}, []string{history}, true, 11, 2},
		{"all", `UPDATE counters SET count = 50, likes = 9`, []string{likes, totals, history}, nil, true, 11, 2},
		{"likes, total lost", `DELETE FROM counters`, []string{likes}, []string{totals, history}, false, 11, 2},
		{"totals, total lost", `DELETE FROM counters`, []string{likes, totals}, []string{history}, true, 11, 2},
		{"history first", `UPDATE counters SET count = 50`, []string{history}, []string{likes, totals}, false, 11, 2},
	} {
		for _, end := range []struct {
			name   string
			commit bool
		}{{"commit", true}, {"rollback", false}} {
			t.Run(test.name+"/"+end.name, func(t *testing.T) {
				t.Parallel()
				url := newPostgres(t, flush.ModeDirect)
				ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
				commit(t, ledger, ledgertest.Add("k", 6), like("k", "old", counter.SetLiked))
				for _, statement := range append(slices.Clone(postgresOver), test.plant) {
					mustExec(t, db, statement)
				}
				tx, err := db.BeginTx(t.Context(), nil)
				must(t, err)
				defer tx.Rollback()
				run(t, tx, test.done)

				repaired := make(chan error, 1)
				go func() {
					_, err := ledger.Repair(context.WithoutCancel(t.Context()), []string{"k"}, 0)
					repaired <- err
				}()
				if test.waits {
					waitForLock(t, db)
				} else {
					must(t, <-repaired)
				}
				run(t, tx, test.left)
				want, wantLikes := test.want, test.wantLikes
				if end.commit {
					must(t, tx.Commit())
				} else {
					must(t, tx.Rollback())
					want, wantLikes = want-4, wantLikes-1
				}
				if test.waits {
					must(t, <-repaired)
				}
				finds(t, ledger)
				counts, err := ledger.Counts(t.Context(), []string{"k"})
				must(t, err)
				if got := counts[0]; got.Value != want || got.Likes != wantLikes {
					t.Errorf("count is %d with %d likes, want %d with %d", got.Value, got.Likes, want, wantLikes)
				}
			})
		}
	}
}

func run(t *testing.T, tx *sql.Tx, statements []string) {
	t.Helper()
	for _, s := range statements {
		if _, err := tx.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// waitForLock waits until a transaction waits for another one.
func waitForLock(t *testing.T, db *sql.DB) {
	t.Helper()
	if !testproc.Poll(30*time.Second, 5*time.Millisecond, func() bool {
		var n int
		const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
		must(t, db.QueryRowContext(t.Context(), waiting).Scan(&n))
		return n > 0
	}) {
		t.Fatal("nothing waits for a lock")
	}
}

// Two repairs would correct the same twice.
func TestRepairsExcludeEachOther(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeDirect)
	ledger, other, db := openPostgres(t, url), openPostgres(t, url), openDB(t, "pgx", url)
	commit(t, ledger, ledgertest.Add("k", 6))
	mustExec(t, db, `UPDATE counters SET count = 50`)
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, err)
	defer tx.Rollback()
	run(t, tx, []string{`SELECT FROM counters FOR UPDATE`})
	first := make(chan error, 1)
	go func() {
		_, err := ledger.Repair(context.WithoutCancel(t.Context()), []string{"k"}, 0)
		first <- err
	}()
	waitForLock(t, db)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := other.Repair(ctx, []string{"k"}, 0); err == nil || ctx.Err() != nil {
		t.Error("a second repair at the same time is not refused")
	}
	must(t, tx.Commit())
	must(t, <-first)
	finds(t, ledger)
	repaired, err := other.Repair(t.Context(), []string{"k"}, 0)
	must(t, err)
	if len(repaired.Totals) != 0 {
		t.Errorf("repaired again: %+v", repaired)
	}
}

// Likes are compared over all shards, and corrected at home; counts by shard.
func TestRepairOfShards(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	mustExec(t, db, `INSERT INTO counters (key, shard, count, likes, before_history, updated_at)
		SELECT 'k', s, 10 + s, 2, 10, now() FROM generate_series(0, 2) AS s`)
	mustExec(t, db, `INSERT INTO history (key, bucket, shard, delta) VALUES ('k', now(), 1, 1), ('k', now(), 2, 2)`)
	mustExec(t, db, `INSERT INTO likes (key, actor, liked, at) SELECT 'k', 'actor' || n, n <= 6, now() FROM generate_series(1, 9) AS n`)
	finds(t, ledger)
	mustExec(t, db, `UPDATE counters SET count = 0 WHERE shard = 1`)
	mustExec(t, db, `UPDATE counters SET likes = likes - 5 WHERE shard = 2`)
	mustExec(t, db, `DELETE FROM counters WHERE shard = 0`)
	finds(t, ledger,
		flush.Difference{Subject: flush.OfCount, Key: "k", Shard: 1, Total: "0", Rows: "11"},
		flush.Difference{Subject: flush.OfLikes, Key: "k", Total: "-1", Rows: "6"})
	_, err := ledger.Repair(t.Context(), []string{"k"}, shardCount)
	must(t, err)
	finds(t, ledger)
	home := shard.Home("k", shardCount)
	for n := range shardCount {
		want := []int64{0, 2, -3}[n]
		if n == home {
			want += 7
		}
		var likes int64
		err := db.QueryRowContext(t.Context(), `SELECT coalesce(sum(likes), 0) FROM counters WHERE shard = $1`, n).Scan(&likes)
		if err != nil || likes != want {
			t.Errorf("shard %d has %d likes, %v, want %d", n, likes, err, want)
		}
	}
}

// What the row of a counter has of its last bucket is part of its history.
func TestAuditOfTheLastBucket(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeDirect)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	commit(t, ledger, ledgertest.Add("k", 6))
	mustExec(t, db, postgresOver[0]) // without the other half
	finds(t, ledger, flush.Difference{Subject: flush.OfCount, Key: "k", Total: "6", Rows: "12"})
	mustExec(t, db, `UPDATE counters SET bucket_delta = -2`)
	finds(t, ledger, flush.Difference{Subject: flush.OfCount, Key: "k", Total: "6", Rows: "4"})
	_, err := ledger.Repair(t.Context(), []string{"k"}, 0)
	must(t, err)
	commit(t, ledger, ledgertest.Add("k", 1))
	finds(t, ledger)
	counts, err := ledger.Counts(t.Context(), []string{"k"})
	must(t, err)
	if counts[0].Value != 5 {
		t.Errorf("count is %d, want 5", counts[0].Value)
	}
}

func TestRepairIsBounded(t *testing.T) {
	t.Parallel()
	ledger := openPostgres(t, newPostgres(t, flush.ModeDirect))
	if _, err := ledger.Repair(t.Context(), make([]string, flush.MaxRepair+1), 0); err == nil {
		t.Error("a repair without bounds is not refused")
	}
}
