package flush_test

import (
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/pgtest"
)

// migrateTo brings an empty database to an old version of the schema.
func migrateTo(t *testing.T, db *sql.DB, dialect goose.Dialect, folder string, version int64) {
	t.Helper()
	if _, err := newProvider(t, db, dialect, folder).UpTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}

// migrateDown brings a database back to an old version of the schema.
func migrateDown(t *testing.T, db *sql.DB, dialect goose.Dialect, folder string, version int64) {
	t.Helper()
	if _, err := newProvider(t, db, dialect, folder).DownTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}

func newProvider(t *testing.T, db *sql.DB, dialect goose.Dialect, folder string) *goose.Provider {
	t.Helper()
	files, err := fs.Sub(os.DirFS("migrations"), folder)
	if err != nil {
		t.Fatal(err)
	}
	provider, err := goose.NewProvider(dialect, db, files, goose.WithTableName("plusone_migrations"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	return provider
}

// wantBeforeHistory compares the counters with what each row's count had before its history, and their counts with
// it and the history together.
func wantBeforeHistory(t *testing.T, db *sql.DB, table string, want ...string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT c.key, c.before_history, c.count = c.before_history + coalesce(sum(h.delta), 0)
		FROM counters AS c LEFT JOIN `+table+` GROUP BY c.key, c.before_history, c.count ORDER BY c.key, c.count`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var key, before string
		var sums bool
		if err := rows.Scan(&key, &before, &sums); err != nil {
			t.Fatal(err)
		}
		got = append(got, key+" "+before)
		if !sums {
			t.Errorf("the count of %s is not what it had before its history and the history", key)
		}
	}
	if rows.Err() != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, rows.Err(), want)
	}
}

const (
	oldPostgresHistory = `history AS h ON h.key = c.key AND h.shard = c.shard`
	postgresHistory    = `(SELECT key, shard, delta FROM history UNION ALL SELECT key, shard, bucket_delta FROM counters) AS h
		ON h.key = c.key AND h.shard = c.shard`
	sqliteHistory = `(SELECT key, delta FROM history UNION ALL SELECT key, bucket_delta FROM counters) AS h ON h.key = c.key`
)

func TestPostgresMigratesCounts(t *testing.T) {
	t.Parallel()
	url := pgtest.NewDatabase(t)
	db := openDB(t, "pgx", url)
	migrateTo(t, db, goose.DialectPostgres, "postgres", 1)
	mustExec(t, db, `INSERT INTO counters (key, shard, count, updated_at) VALUES
		('all', 0, 5, now()), ('some', 0, 100, now()), ('some', 1, 7, now()), ('none', 0, -3, now()),
		('edge', 0, -9223372036854775808, now())`)
	mustExec(t, db, `INSERT INTO history (key, bucket, shard, delta) VALUES
		('all', '2030-01-01 01:00+00', 0, 7), ('all', '2030-01-01 02:00+00', 0, -2), ('some', '2030-01-01 01:00+00', 0, 40),
		('some', '2030-01-01 01:00+00', 1, 7), ('edge', '2030-01-01 01:00+00', 0, 9223372036854775807)`)
	mustExec(t, db, `INSERT INTO request_ids (id, fingerprint, at) VALUES ('\x00aa', 1, now())`)
	ledger := openPostgres(t, url)
	prepare(t, ledger, flush.ModeSharded)
	wantBeforeHistory(t, db, postgresHistory, "all 0", "edge -18446744073709551615", "none -3", "some 0", "some 60")
	counts, err := ledger.Counts(t.Context(), []string{"all", "some", "none"})
	if err != nil || counts[0].Value != 5 || counts[1].Value != 107 || counts[2].Value != -3 || counts[1].Likes != 0 {
		t.Errorf("%+v, %v", counts, err)
	}
	if likes, err := ledger.ListLikers(t.Context(), "all", counter.LikeCursor{}, 5); err != nil || len(likes) != 0 {
		t.Errorf("likers %v, %v", likes, err)
	}
}

func TestSQLiteMigratesCounts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	db := openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)")
	migrateTo(t, db, goose.DialectSQLite3, "sqlite", 1)
	mustExec(t, db, `INSERT INTO counters (key, count, updated_at) VALUES ('all', 5, 0), ('some', 100, 0), ('none', -3, 0)`)
	mustExec(t, db, `INSERT INTO history (key, bucket, delta) VALUES ('all', 1, 7), ('all', 2, -2), ('some', 1, 40)`)
	ledger := openSQLite(t, path, flush.SQLiteOptions{})
	wantBeforeHistory(t, db, sqliteHistory, "all 0", "none -3", "some 60")
	if _, _, err := ledger.Commit(t.Context(), []counter.Change{ledgertest.Like("some", "ann"), ledgertest.Add("none", 1)}); err != nil {
		t.Fatal(err)
	}
	wantBeforeHistory(t, db, sqliteHistory, "all 0", "none -3", "some 60")
}

// Ids that were taken by an older version stay taken, and are forgotten in their time.
func TestSQLiteMigratesIDs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	db := openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)")
	migrateTo(t, db, goose.DialectSQLite3, "sqlite", 2)
	clock := newTestClock()
	changes := []counter.Change{
		ledgertest.With(ledgertest.V7(clock.now()), ledgertest.Add("views/a", 1)),
		ledgertest.With(ledgertest.Opaque(), ledgertest.Add("views/a", 1)),
	}
	var key counter.FingerprintKey
	mustExec(t, db, `INSERT INTO settings (name, value) VALUES ('fingerprint-key', ?)`, hex.EncodeToString(key[:]))
	for kind, change := range changes {
		mustExec(t, db, `INSERT INTO request_ids (id, fingerprint, at) VALUES (?, ?, ?)`,
			append([]byte{byte(7 - 7*kind)}, change.RequestID.Bytes()...), int64(change.Fingerprint(&key)), clock.now().UnixMilli())
	}
	ledger := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now})
	verdicts, _, err := ledger.Commit(t.Context(), changes)
	if err != nil || verdicts[0].Outcome != counter.Duplicate || verdicts[1].Outcome != counter.Duplicate {
		t.Errorf("%+v, %v", verdicts, err)
	}
	if n, err := ledger.PruneClaims(t.Context(), 10); n != 0 || err != nil {
		t.Errorf("%d are forgotten too early, %v", n, err)
	}
	clock.advance(2 * ledgertest.Dedupe)
	if n, err := ledger.PruneClaims(t.Context(), 10); n != 2 || err != nil {
		t.Errorf("%d of 2 are forgotten, %v", n, err)
	}
}

// What is added while no history is kept is counted apart, so that counts can be checked against the history at any
// time.
func TestBeforeHistory(t *testing.T) {
	t.Parallel()
	changes := func(i int64) []counter.Change {
		return []counter.Change{
			ledgertest.Add("views/a", 10*i), ledgertest.With(ledgertest.Opaque(), ledgertest.Add("views/b", -i)),
			ledgertest.Like("views/a", fmt.Sprint("actor-", i)), ledgertest.Like("views/a", "always"),
		}
	}
	settings := []flush.History{flush.HistoryNone, flush.HistoryMinute, flush.HistoryNone, flush.HistoryHour}
	want := []string{"views/a 43", "views/b -4"} // of the first and the third, in which "always" is not new
	check := func(t *testing.T, commit func(flush.History, []counter.Change), db *sql.DB, table string) {
		for i, history := range settings {
			commit(history, changes(int64(i+1)))
			if i == 0 {
				wantBeforeHistory(t, db, table, "views/a 12", "views/b -1")
			}
		}
		wantBeforeHistory(t, db, table, want...)
	}
	t.Run("Postgres", func(t *testing.T) {
		t.Parallel()
		url := newPostgres(t, flush.ModeDirect)
		check(t, func(history flush.History, changes []counter.Change) {
			ledger := openPostgresWith(t, url, history)
			if _, _, err := ledger.Commit(t.Context(), changes[:1]); err != nil { // the plain way
				t.Fatal(err)
			}
			if _, _, err := ledger.Commit(t.Context(), changes[1:]); err != nil {
				t.Fatal(err)
			}
		}, openDB(t, "pgx", url), postgresHistory)
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "plusone.db")
		check(t, func(history flush.History, changes []counter.Change) {
			ledger := openSQLite(t, path, flush.SQLiteOptions{History: history})
			if _, _, err := ledger.Commit(t.Context(), changes); err != nil {
				t.Fatal(err)
			}
			if err := ledger.Close(); err != nil {
				t.Fatal(err)
			}
		}, openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)"), sqliteHistory)
	})
	t.Run("windows", func(t *testing.T) {
		t.Parallel()
		url := newPostgres(t, flush.ModeSharded)
		apply := func(history flush.History, id int64, deltas map[string]int64) {
			if _, err := openPostgresWith(t, url, history).Apply(t.Context(), window(0, id, deltas)); err != nil {
				t.Fatal(err)
			}
		}
		apply(flush.HistoryNone, 1, map[string]int64{"views/a": 5, "views/edge": 1<<63 - 2})
		apply(flush.HistoryHour, 2, map[string]int64{"views/a": 6, "views/edge": -1})
		apply(flush.HistoryNone, 3, map[string]int64{"views/a": 7, "views/edge": 10}) // 2 of which fit
		wantBeforeHistory(t, openDB(t, "pgx", url), postgresHistory, "views/a 12", "views/edge 9223372036854775808")
	})
}

// SQLite keeps what was added before the history in an int64, as it does a bucket.
func TestSQLiteBeforeHistoryOverflows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	commit := func(history flush.History, want error, changes ...counter.Change) {
		t.Helper()
		ledger := openSQLite(t, path, flush.SQLiteOptions{History: history})
		verdicts, _, err := ledger.Commit(t.Context(), changes)
		if err != nil || !errors.Is(verdicts[0].Err, want) {
			t.Errorf("%+v, %v, want error %v", verdicts, err, want)
		}
		if err := ledger.Close(); err != nil {
			t.Fatal(err)
		}
	}
	commit(flush.HistoryNone, nil, ledgertest.Add("views/a", 1<<63-1))
	commit(flush.HistoryHour, nil, ledgertest.Add("views/a", -100))
	commit(flush.HistoryNone, counter.ErrOverflow, ledgertest.Add("views/a", 1))
	commit(flush.HistoryNone, counter.ErrOverflow, ledgertest.Like("views/a", "ann"))
	commit(flush.HistoryHour, nil, ledgertest.Add("views/a", 1))
	wantBeforeHistory(t, openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)"), sqliteHistory, "views/a 9223372036854775807")
}
