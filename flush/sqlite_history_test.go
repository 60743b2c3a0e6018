package flush_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
)

// bucketModel is what a ledger should hold of keys.
type bucketModel struct {
	total, likes, before map[string]int64
	buckets              map[string]map[int64]int64 // by key and start in ms
}

func newBucketModel() *bucketModel {
	return &bucketModel{
		total: make(map[string]int64), likes: make(map[string]int64), before: make(map[string]int64),
		buckets: make(map[string]map[int64]int64),
	}
}

// add changes a key and reports whether it could: neither the total nor what moves with it may overflow.
func (m *bucketModel) add(key string, history flush.History, now time.Time, delta int64) bool {
	size := map[flush.History]time.Duration{flush.HistoryHour: time.Hour, flush.HistoryMinute: time.Minute}[history]
	part, at := m.before[key], int64(0)
	if size > 0 {
		at = now.Truncate(size).UnixMilli()
		part = m.buckets[key][at]
	}
	total, ok := counter.Add(m.total[key], delta)
	part, fits := counter.Add(part, delta)
	if !ok || !fits || delta == 0 { // of which the last is a reset that has nothing to do
		return delta == 0
	}
	m.total[key] = total
	if size == 0 {
		m.before[key] = part
		return true
	}
	if m.buckets[key] == nil {
		m.buckets[key] = make(map[int64]int64)
	}
	m.buckets[key][at] = part
	return true
}

// rows are those of counter_history.
func (m *bucketModel) rows() (rows []string) {
	for key, buckets := range m.buckets {
		for at, delta := range buckets {
			rows = append(rows, fmt.Sprint(key, " ", time.UnixMilli(at).UTC().Format(time.RFC3339), " ", delta))
		}
	}
	slices.Sort(rows)
	return rows
}

func readRows(t require, db *sql.DB, query string) (rows []string) {
	found, err := db.QueryContext(context.Background(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer found.Close()
	for found.Next() {
		var row string
		if err := found.Scan(&row); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		rows = append(rows, row)
	}
	if err := found.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	slices.Sort(rows)
	return rows
}

// require is what testing.T and rapid.T have in common.
type require interface {
	Fatalf(format string, args ...any)
}

// A reset that has nothing to do begins no bucket.
func TestSQLiteResetOfNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	clock := newTestClock()
	ledger, db := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now}), openDB(t, "sqlite", "file:"+path)
	key := ledgertest.Key()
	reset := ledgertest.Add(key, 0)
	reset.Reset = true
	likes := []counter.Change{ledgertest.Like(key, "ann"), ledgertest.Like(key, "bob")} // a reset is made of halves of their sum
	for _, changes := range [][]counter.Change{likes, {reset}} {
		verdicts, _, err := ledger.Commit(t.Context(), changes)
		if err != nil || verdicts[0].Err != nil {
			t.Fatalf("%+v, %v", verdicts, err)
		}
		clock.advance(time.Hour)
	}
	if rows := readRows(t, db, `SELECT bucket || ' ' || delta FROM counter_history`); len(rows) != 1 {
		t.Errorf("history %q", rows)
	}
}

// Whatever becomes of clock and settings, each change is in the bucket of its moment, a bucket in one place, and all but a
// key's last in the table history.
func TestSQLiteBuckets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	clock, history := newTestClock(), flush.HistoryHour
	open := func() *flush.SQLite {
		return openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now, HistoryOf: func(string) flush.History { return history }})
	}
	ledger, db := open(), openDB(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)")
	rapid.Check(t, func(t *rapid.T) {
		m, keys := newBucketModel(), []string{ledgertest.Key(), ledgertest.Key()}
		known := ledgertest.With(ledgertest.Opaque(), ledgertest.Add(keys[0], 1))
		for step := range rapid.IntRange(1, 15).Draw(t, "steps") {
			key := rapid.SampledFrom(keys).Draw(t, "key")
			change, delta := ledgertest.Add(key, 1), int64(1)
			switch rapid.SampledFrom([]string{"add", "edge", "like", "reset", "known", "turn", "minute", "hour"}).Draw(t, "step") {
			case "add":
				delta = rapid.SampledFrom([]int64{2, -3}).Draw(t, "delta")
			case "edge":
				delta = rapid.SampledFrom([]int64{math.MaxInt64 / 3 * 2, math.MaxInt64 - 20, -math.MaxInt64 + 20}).Draw(t, "delta")
			case "like":
				change = ledgertest.Like(key, fmt.Sprint("actor", step))
			case "reset":
				delta = m.likes[key] - m.total[key]
				change.Reset = true
			case "known":
				change, key = known, keys[0]
			case "turn":
				history = rapid.SampledFrom([]flush.History{flush.HistoryNone, flush.HistoryHour, flush.HistoryMinute}).Draw(t, "history")
			case "minute":
				clock.advance(time.Minute)
			case "hour":
				clock.advance(time.Hour)
			}
			if step == 7 { // a clock that was set back is believed by a new process
				if err := ledger.Close(); err != nil {
					t.Fatalf("close: %v", err)
				}
				clock.advance(-rapid.SampledFrom([]time.Duration{time.Minute, time.Hour}).Draw(t, "back"))
				ledger = open()
			}
			if change.Like == counter.NoLike && !change.Reset {
				change.Entries[0].Delta = delta
			}
			verdicts, _, err := ledger.Commit(context.Background(), []counter.Change{change})
			if err != nil {
				t.Fatalf("commit: %v", err)
			}
			switch v := verdicts[0]; {
			case v.Outcome == counter.Duplicate:
			case m.add(key, history, clock.now(), delta) != (v.Err == nil), v.Err != nil && !errors.Is(v.Err, counter.ErrOverflow):
				t.Fatalf("%+v of %+v", v, change)
			case v.Err == nil && change.Like != counter.NoLike:
				m.likes[key]++
			}
			want := m.rows()
			of := fmt.Sprintf(` WHERE key IN ('%s', '%s')`, keys[0], keys[1])
			if got := readRows(t, db, `SELECT key || ' ' || bucket || ' ' || delta FROM counter_history`+of); !slices.Equal(got, want) {
				t.Fatalf("history %q, want %q", got, want)
			}
			if got := readRows(t, db, `SELECT key FROM history`+of); len(got) != len(want)-len(m.buckets) {
				t.Fatalf("of %d buckets of %d keys %d are in the table", len(want), len(m.buckets), len(got))
			}
		}
	})
	finds(t, auditSQLite(t, path, false))
}

// A file of version 4 has its last buckets in history, as one that is taken back to it.
func TestSQLiteMigratesBuckets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	db := openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)")
	clock := newTestClock()
	hour := clock.now().Truncate(time.Hour).UnixMilli()
	migrateTo(t, db, goose.DialectSQLite3, "sqlite", 4)
	mustExec(t, db, `INSERT INTO counters (key, count, updated_at) VALUES ('a', 7, 0), ('b', 2, 0)`)
	mustExec(t, db, fmt.Sprintf(`INSERT INTO history (key, bucket, delta) VALUES ('a', %[1]d, 5), ('a', 0, 2), ('b', %[1]d, 2)`, hour))
	use := func(changes ...counter.Change) {
		t.Helper()
		ledger := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now})
		commit(t, ledger, changes...)
		must(t, ledger.Close())
		ledgertest.Audit(t, db)
	}
	holds := func(want ...string) {
		t.Helper()
		got := readRows(t, db, fmt.Sprintf(`SELECT key || ' ' || (bucket = %d) || ' ' || delta FROM history`, hour))
		if !slices.Equal(got, want) {
			t.Errorf("history has %q, want %q", got, want)
		}
	}
	use(ledgertest.Add("a", 10))
	holds("a 0 2", "b 1 2")
	clock.advance(time.Hour)
	use(ledgertest.Add("a", 1))
	holds("a 0 2", "a 1 15", "b 1 2")
	use(ledgertest.Add("b", -1), ledgertest.Add("c", 3))

	migrateDown(t, db, goose.DialectSQLite3, "sqlite", 4)
	holds("a 0 1", "a 0 2", "a 1 15", "b 0 -1", "b 1 2", "c 0 3")
	ledgertest.Audit(t, db)
	use(ledgertest.Add("a", 1), ledgertest.Add("b", 1))
	holds("a 0 2", "a 1 15", "b 1 2", "c 0 3")
}
