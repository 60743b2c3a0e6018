package flush_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/shard"
)

const (
	// manyKeys are enough for new ones to be looked for, fewKeys are not.
	manyKeys = 1_500
	fewKeys  = 100
)

// byName has a history of its own for each of three kinds of keys.
func byName(key string) flush.History {
	return []flush.History{flush.HistoryNone, flush.HistoryMinute, flush.HistoryHour}[key[len(key)-1]%3]
}

// openByName opens a new ledger of keys with different histories.
func openByName(t *testing.T) (*flush.Postgres, *sql.DB) {
	t.Helper()
	url := newPostgres(t, flush.ModeSharded)
	ledger, err := flush.OpenPostgres(t.Context(), url, flush.PostgresOptions{HistoryOf: byName, DedupeWindow: ledgertest.Dedupe})
	must(t, err)
	t.Cleanup(ledger.Close)
	return ledger, openDB(t, "pgx", url)
}

// manyDeltas are deltas of all sizes for keys from the first on.
func manyDeltas(random *rand.Rand, first int) map[string]int64 {
	deltas := make(map[string]int64, manyKeys)
	for i := range manyKeys {
		digits := int64(math.Pow10(random.IntN(19)))
		deltas[fmt.Sprintf("views/é:%04d", first+i)] = [...]int64{1, -1, digits - 1, digits, -digits, random.Int64() - 1<<62}[random.IntN(6)]
	}
	return deltas
}

// pieces are windows with fewKeys of the deltas each, and the likes of those keys.
func pieces(w flush.Window) []flush.Window {
	var windows []flush.Window
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(w.Deltas)), fewKeys) {
		piece := window(w.Shard, w.ID, make(map[string]int64))
		piece.Likes, piece.LikeDeltas = make(map[counter.Pair]shard.PendingLike), make(map[string]int64)
		for _, key := range keys {
			piece.Deltas[key] = w.Deltas[key]
			if delta, ok := w.LikeDeltas[key]; ok {
				pair := counter.Pair{Key: key, Actor: "ann"}
				piece.LikeDeltas[key], piece.Likes[pair] = delta, w.Likes[pair]
			}
		}
		windows = append(windows, piece)
	}
	return windows
}

// counterRows are all rows of counters as text, without the time of their change, which is to be since then.
func counterRows(t *testing.T, db *sql.DB, since time.Time) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT ROW(key, shard, count, likes, spread, before_history, bucket, bucket_delta,
		previous_bucket, previous_delta)::text, updated_at FROM counters ORDER BY key, shard`)
	must(t, err)
	defer rows.Close()
	var all []string
	for rows.Next() {
		var row string
		var at time.Time
		must(t, rows.Scan(&row, &at))
		if at.Before(since.Truncate(time.Microsecond)) || at.After(time.Now()) {
			t.Fatalf("%s was changed at %v", row, at)
		}
		all = append(all, row)
	}
	must(t, rows.Err())
	return all
}

// A window with many new keys leaves the same as small ones do, whose keys are all upserted: all new, some new, hardly any new.
func TestPostgresInsertsWhatItWouldUpsert(t *testing.T) {
	t.Parallel()
	inserts, insertsDB := openByName(t)
	upserts, upsertsDB := openByName(t)
	began, seed := time.Now(), time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for i, first := range []int{0, manyKeys / 2, manyKeys/2 + 2, 2 * manyKeys} {
		w := window(1, time.Date(2030, 1, 2, 3, 4+i, 5, 0, time.UTC).UnixMilli(), manyDeltas(random, first))
		w.Likes, w.LikeDeltas = make(map[counter.Pair]shard.PendingLike), make(map[string]int64)
		for key, delta := range w.Deltas {
			if i > 0 {
				w.Deltas[key] = delta / 8 // no total is to overflow
			}
			if random.IntN(4) == 0 {
				at := int64(i) + 1
				w.Likes[counter.Pair{Key: key, Actor: "ann"}] = shard.PendingLike{Liked: random.IntN(3) > 0, Micros: at, Since: at}
				w.LikeDeltas[key] = random.Int64N(3) - 1
			}
		}
		applied, err := inserts.Apply(t.Context(), w)
		if err != nil || !applied.OK || applied.Clipped != 0 {
			t.Fatalf("window %d: %+v, %v", i, applied, err)
		}
		for _, piece := range pieces(w) {
			mustExec(t, upsertsDB, `UPDATE shards SET watermark = 0`) // or the second piece would be none
			_, err := upserts.Apply(t.Context(), piece)
			must(t, err)
		}
		got, want := counterRows(t, insertsDB, began), counterRows(t, upsertsDB, began)
		if !slices.Equal(got, want) {
			for j := range min(len(got), len(want)) {
				if got[j] != want[j] {
					t.Errorf("window %d: row %s, want %s", i, got[j], want[j])
				}
			}
			t.Fatalf("window %d leaves %d rows, want %d", i, len(got), len(want))
		}
		finds(t, inserts)
	}
}

// Among many keys that seem to be new by a sample there is one that is not, once and then once more.
func TestPostgresSampleMissesAKey(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	apply := func(id int64, deltas map[string]int64) {
		t.Helper()
		if applied, err := ledger.Apply(t.Context(), window(0, id, deltas)); err != nil || !applied.OK {
			t.Fatalf("%+v, %v", applied, err)
		}
	}
	deltas := func(round int) map[string]int64 {
		deltas := make(map[string]int64, manyKeys)
		for i := range manyKeys {
			deltas[fmt.Sprintf("views/%d/%04d", round, i)] = 2
		}
		return deltas
	}
	apply(1, deltas(0))
	if ledger.LooksForKeys() {
		t.Error("new keys are looked for, though all were new")
	}
	for round := 1; round <= 2; round++ {
		known := fmt.Sprintf("views/%d/0777", round) // no multiple of 64
		apply(int64(10*round), map[string]int64{known: 40})
		apply(int64(10*round+1), deltas(round))
		if !ledger.LooksForKeys() {
			t.Error("new keys are not looked for, though a sample missed one")
		}
		var sum, rows, total int
		const sql = `SELECT sum(count), count(*), sum(count) FILTER (WHERE key = $1) FROM counters`
		must(t, db.QueryRowContext(t.Context(), sql, known).Scan(&sum, &rows, &total))
		if sum != (round+1)*2*manyKeys+round*40 || rows != (round+1)*manyKeys || total != 42 {
			t.Errorf("%d in %d counters, and %d of the one that was there", sum, rows, total)
		}
	}
	finds(t, ledger)
}

// Among many new keys one that would overflow is clipped, and the others get what is theirs.
func TestPostgresInsertsBesideTheEdge(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	deltas := make(map[string]int64, manyKeys)
	for i := range manyKeys {
		deltas[fmt.Sprint("views/", i)] = 1
	}
	_, err := ledger.Apply(t.Context(), window(0, 1, map[string]int64{"views/7": math.MaxInt64}))
	must(t, err)
	applied, err := ledger.Apply(t.Context(), window(0, 2, deltas))
	if err != nil || !applied.OK || applied.Clipped != 1 {
		t.Fatalf("%+v, %v", applied, err)
	}
	var ones, edges int
	const sql = `SELECT count(*) FILTER (WHERE count = 1), count(*) FILTER (WHERE count = 9223372036854775807) FROM counters`
	must(t, db.QueryRowContext(t.Context(), sql).Scan(&ones, &edges))
	if ones != manyKeys-1 || edges != 1 {
		t.Errorf("%d counters of 1 and %d at the edge", ones, edges)
	}
}

// Somebody adds a row by hand while it is taken for new. The window is applied on top of it.
func TestPostgresInsertMeetsARow(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	deltas := make(map[string]int64, manyKeys)
	for i := range manyKeys {
		deltas[fmt.Sprint("views/", i)] = 2
	}
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), `INSERT INTO counters (key, shard, count, before_history, updated_at) VALUES ('views/77', 1, 40, 40, now())`)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		applied, err := ledger.Apply(context.WithoutCancel(t.Context()), window(1, 5, deltas))
		if err == nil && !applied.OK {
			err = fmt.Errorf("not applied: %+v", applied)
		}
		done <- err
	}()
	if !testproc.Poll(30*time.Second, time.Millisecond, func() bool { return waitsForLock(t, db) }) {
		t.Error("nothing waits for the row")
	}
	must(t, tx.Commit())
	must(t, <-done)
	var sum, rows, total int
	must(t, db.QueryRowContext(t.Context(), `SELECT sum(count), count(*), sum(count) FILTER (WHERE key = 'views/77') FROM counters`).Scan(&sum, &rows, &total))
	if sum != 2*manyKeys+40 || rows != manyKeys || total != 42 {
		t.Errorf("%d in %d counters, and %d of the one that was there", sum, rows, total)
	}
	finds(t, ledger)
}
