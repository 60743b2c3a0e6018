package flush_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/pgtest"
)

// wantBuckets compares the public history with what was changed in each bucket.
func wantBuckets(t *testing.T, db *sql.DB, want map[string]int64) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT key, bucket, delta::bigint FROM counter_history WHERE delta <> 0`)
	must(t, err)
	defer rows.Close()
	got := make(map[string]int64)
	for rows.Next() {
		var key string
		var bucket time.Time
		var delta int64
		must(t, rows.Scan(&key, &bucket, &delta))
		got[key+bucket.UTC().Format(" 15:04")] = delta
	}
	must(t, rows.Err())
	want = maps.Clone(want)
	maps.DeleteFunc(want, func(_ string, delta int64) bool { return delta == 0 })
	if !maps.Equal(got, want) {
		t.Fatalf("buckets %v, want %v", got, want)
	}
}

// openTurning opens a ledger whose keys have the history that is in turn.
func openTurning(t *testing.T, url string, turn *flush.History) *flush.Postgres {
	t.Helper()
	ledger, err := flush.OpenPostgres(t.Context(), url, flush.PostgresOptions{
		HistoryOf: func(string) flush.History { return *turn }, DedupeWindow: ledgertest.Dedupe, MaxConns: 6,
	})
	must(t, err)
	t.Cleanup(ledger.Close)
	return ledger
}

// Buckets come in any order, of hours and minutes and between them none, and each has what was changed in it. All that is not
// of the bucket that the counter was last changed in is in the table history.
func TestPostgresBucketsInAnyOrder(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	var turn flush.History
	ledger, db := openTurning(t, url, &turn), openDB(t, "pgx", url)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	day := time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC)
	want, before := make(map[string]int64), make(map[string]int64)
	for step := range 150 {
		turn = []flush.History{flush.HistoryNone, flush.HistoryMinute, flush.HistoryHour}[random.IntN(3)]
		at := day.Add(time.Duration(random.IntN(6)) * 30 * time.Minute)
		deltas := map[string]int64{fmt.Sprint("views/", random.IntN(3)): random.Int64N(7) - 3, "views/all": random.Int64N(7) - 3}
		mustExec(t, db, `UPDATE shards SET watermark = 0`) // or earlier windows were none
		applied, err := ledger.Apply(t.Context(), window(step%2, at.UnixMilli(), deltas))
		if err != nil || !applied.OK {
			t.Fatalf("%+v, %v", applied, err)
		}
		bucket := at.Truncate(time.Minute)
		if turn == flush.HistoryHour {
			bucket = at.Truncate(time.Hour)
		}
		for key, delta := range deltas {
			if turn == flush.HistoryNone {
				before[key] += delta
			} else {
				want[key+bucket.Format(" 15:04")] += delta
			}
		}
		wantBuckets(t, db, want)
		finds(t, ledger)
	}
	for key, n := range before {
		var got int64
		must(t, db.QueryRowContext(t.Context(), `SELECT sum(before_history)::bigint FROM counters WHERE key = $1`, key).Scan(&got))
		if got != n {
			t.Errorf("%s has %d before its history, want %d", key, got, n)
		}
	}
	var faults int
	const sum = `SELECT count(*) FROM counters AS c WHERE bucket IS NULL AND bucket_delta <> 0 OR count <> before_history + bucket_delta
		+ (SELECT coalesce(sum(delta), 0) FROM history AS h WHERE h.key = c.key AND h.shard = c.shard)`
	must(t, db.QueryRowContext(t.Context(), sum).Scan(&faults))
	if faults != 0 {
		t.Errorf("%d counters are not what they had before the history and the history", faults)
	}
}

// A change of the bucket that the counter was last changed in writes the counter alone.
func TestPostgresWritesOneRow(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	hour := time.Hour.Milliseconds()
	for i, want := range []struct {
		id   int64
		rows int
	}{{hour, 0}, {hour + 1, 0}, {2*hour - 1, 0}, {2 * hour, 1}, {2*hour + 1, 1}, {9 * hour, 2}} {
		_, err := ledger.Apply(t.Context(), window(0, want.id, map[string]int64{"views/a": 1}))
		must(t, err)
		var rows int
		must(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM history`).Scan(&rows))
		if rows != want.rows {
			t.Errorf("after %d changes history has %d rows, want %d", i+1, rows, want.rows)
		}
	}
}

// Commits of now, and windows that are late, meet on the same counters: what each has pushed out is counted once, and
// no two of them wait for each other.
func TestPostgresBucketsRace(t *testing.T) {
	t.Parallel()
	const keys, writers, rounds = 50, 4, 40
	url := newPostgres(t, flush.ModeSharded)
	var group sync.WaitGroup
	for w := range writers {
		ledger := openPostgresWith(t, url, []flush.History{flush.HistoryHour, flush.HistoryMinute}[w%2])
		group.Go(func() {
			for n := range rounds {
				deltas, changes := make(map[string]int64), make([]counter.Change, 0, keys)
				for k := range keys {
					key := fmt.Sprint("views/", (k*7+n)%keys)
					deltas[key] = 1
					changes = append(changes, ledgertest.Add(key, 1))
				}
				var err error
				if w < 2 {
					_, _, err = ledger.Commit(context.WithoutCancel(t.Context()), changes)
				} else {
					_, err = ledger.Apply(context.WithoutCancel(t.Context()), window(0, int64(2*n+w)*time.Minute.Milliseconds(), deltas))
				}
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	group.Wait()
	db := openDB(t, "pgx", url)
	finds(t, openPostgres(t, url))
	ledgertest.Audit(t, db)
	var deadlocks int
	const met = `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`
	must(t, db.QueryRowContext(t.Context(), met).Scan(&deadlocks))
	if deadlocks != 0 {
		t.Errorf("%d deadlocks", deadlocks)
	}
}

// A ledger of before goes on as it is, and back.
func TestPostgresMigratesBuckets(t *testing.T) {
	t.Parallel()
	url := pgtest.NewDatabase(t)
	db := openDB(t, "pgx", url)
	migrateTo(t, db, goose.DialectPostgres, "postgres", 3)
	mustExec(t, db, `INSERT INTO counters (key, shard, count, before_history, updated_at)
		VALUES ('a', 0, 5, 1, now()), ('a', 1, 9, 0, now())`)
	mustExec(t, db, `INSERT INTO history (key, bucket, shard, delta)
		VALUES ('a', '2030-01-02 03:00+00', 0, 4), ('a', '2030-01-02 03:00+00', 1, 10), ('a', '2030-01-02 04:00+00', 1, -1)`)
	ledger := openPostgres(t, url)
	prepare(t, ledger, flush.ModeSharded)
	finds(t, ledger)
	at := time.Date(2030, 1, 2, 3, 30, 0, 0, time.UTC)
	want := map[string]int64{"a 03:00": 14, "a 04:00": -1}
	wantBuckets(t, db, want)
	add := func(n int, at time.Time, delta int64) {
		t.Helper()
		_, err := ledger.Apply(t.Context(), window(n, at.UnixMilli(), map[string]int64{"a": delta}))
		must(t, err)
		want["a "+at.Format("15")+":00"] += delta
		wantBuckets(t, db, want)
		finds(t, ledger)
	}
	add(0, at, 100) // a bucket of which history has a row
	add(1, at, 1)
	add(1, at.Add(time.Hour), 20)
	add(0, at.Add(2*time.Hour), math.MaxInt32)

	migrateDown(t, db, goose.DialectPostgres, "postgres", 3)
	wantBuckets(t, db, want)
	wantBeforeHistory(t, db, oldPostgresHistory, "a 0", "a 1")
}
