package flush_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/shard"
)

// likesAt is the Unix time in µs that these tests count from. Repeats are of states since the moment before.
const likesAt = 1_900_000_000_000_000

// changeAt is a change at a moment, in µs after likesAt.
func changeAt(liked bool, at int64) shard.PendingLike {
	return shard.PendingLike{Liked: liked, Micros: likesAt + at, Since: likesAt + at}
}

func newAt(at int64) shard.PendingLike {
	like := changeAt(true, at)
	like.New = true
	return like
}

func repeatAt(liked bool, at int64) shard.PendingLike {
	like := changeAt(liked, at)
	like.Since--
	return like
}

// likesWindow is a window with a like of each actor from the first up to the last.
func likesWindow(n int, id int64, first, last int, state func(i int) shard.PendingLike) flush.Window {
	w := window(n, id, make(map[string]int64))
	w.Likes, w.LikeDeltas = make(map[counter.Pair]shard.PendingLike), make(map[string]int64)
	for i := first; i < last; i++ {
		like := state(i)
		key := fmt.Sprintf("likes/é:%d", i%7)
		w.Likes[counter.Pair{Key: key, Actor: fmt.Sprint("actor-", i)}] = like
		if like.Since == like.Micros {
			delta := int64(-1)
			if like.Liked {
				delta = 1
			}
			w.Deltas[key] += delta
			w.LikeDeltas[key] += delta
		}
	}
	return w
}

// unmarked is a window whose likes do not say which are new.
func unmarked(w flush.Window) flush.Window {
	w.Likes = maps.Clone(w.Likes)
	for pair, like := range w.Likes {
		like.New = false
		w.Likes[pair] = like
	}
	return w
}

// noteInserts notes the beginnings of the statements that insert likes, in the table inserts.
func noteInserts(t *testing.T, db *sql.DB) {
	t.Helper()
	mustExec(t, db, `CREATE TABLE inserts (word text)`)
	mustExec(t, db, `CREATE FUNCTION note_insert() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO inserts SELECT split_part(btrim(current_query(), E' \n'), ' ', 1); RETURN NULL; END $$`)
	mustExec(t, db, `CREATE TRIGGER note_insert BEFORE INSERT ON likes FOR EACH STATEMENT EXECUTE FUNCTION note_insert()`)
}

// lines are the rows of a query with one column of text.
func lines(t *testing.T, db *sql.DB, query string) (all []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var line string
		must(t, rows.Scan(&line))
		all = append(all, line)
	}
	must(t, rows.Err())
	return all
}

// A window that says which likes are new leaves the same as one that does not, also where it is wrong.
func TestPostgresInsertsLikesItWouldUpsert(t *testing.T) {
	t.Parallel()
	marked, markedDB := openByName(t)
	plain, plainDB := openByName(t)
	noteInserts(t, markedDB)
	began, seed := time.Now(), time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	// anyAt is a state that no script takes for new.
	anyAt := func(at int64) shard.PendingLike {
		liked := random.IntN(2) == 0
		if random.IntN(2) == 0 {
			return changeAt(liked, at)
		}
		return repeatAt(liked, at)
	}
	for i, step := range []struct {
		window  flush.Window
		inserts []string
	}{
		{likesWindow(1, 1, 0, manyKeys, func(i int) shard.PendingLike {
			if i%5 < 3 {
				return newAt(10)
			}
			return anyAt(10)
		}), []string{"COPY", "INSERT"}},
		{likesWindow(1, 2, manyKeys/2, 3*manyKeys, func(i int) shard.PendingLike {
			if i < manyKeys {
				return anyAt(20)
			}
			like := newAt(20)
			like.Liked = i%9 > 0 // no script takes an unlike for new
			return like
		}), []string{"COPY", "INSERT"}},
		{likesWindow(1, 3, 3*manyKeys, 4*manyKeys, func(int) shard.PendingLike { return newAt(30) }), []string{"COPY"}},
		{likesWindow(1, 4, 4*manyKeys, 4*manyKeys+fewKeys, func(int) shard.PendingLike { return newAt(40) }), []string{"INSERT"}},
		// Of what is there some is older, some newer, and some of the same moment; liked or not.
		{likesWindow(1, 5, 0, 5*manyKeys, func(int) shard.PendingLike { return newAt(random.Int64N(50)) }), []string{"INSERT"}},
		{likesWindow(0, 1, manyKeys, 6*manyKeys, func(int) shard.PendingLike { return newAt(random.Int64N(60)) }), []string{"INSERT"}},
	} {
		mustExec(t, markedDB, `TRUNCATE inserts`)
		got, err := marked.Apply(t.Context(), step.window)
		must(t, err)
		want, err := plain.Apply(t.Context(), unmarked(step.window))
		must(t, err)
		if !got.OK || !reflect.DeepEqual(got, want) {
			t.Errorf("window %d: %+v, want %+v", i, got, want)
		}
		if got := lines(t, markedDB, `SELECT word FROM inserts`); !slices.Equal(got, step.inserts) {
			t.Errorf("window %d inserts by %q, want %q", i, got, step.inserts)
		}
		const likes = `SELECT ROW(key, actor, liked, at, was)::text FROM likes ORDER BY key, actor`
		if !slices.Equal(lines(t, markedDB, likes), lines(t, plainDB, likes)) {
			t.Errorf("window %d leaves other likes", i)
		}
		if got, want := counterRows(t, markedDB, began), counterRows(t, plainDB, began); !slices.Equal(got, want) {
			t.Errorf("window %d leaves %q, want %q", i, got, want)
		}
		finds(t, marked)
	}
}

// Two shards' windows have the same likes for new, and insert each a half of them before the other half. They wait for each other
// in a circle, and each like counts once.
func TestPostgresNewLikesOfTwoShards(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	db := openDB(t, "pgx", url)
	mustExec(t, db, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''10ms''', current_database()); END $$`)
	ledger := openPostgres(t, url)
	// Upserts begin when both have copied.
	mustExec(t, db, `CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF current_query() NOT LIKE 'COPY%' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF; RETURN NULL; END $$`)
	mustExec(t, db, `CREATE TRIGGER wait_at_gate BEFORE INSERT ON likes FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate()`)
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(1)`)
	must(t, err)
	var group sync.WaitGroup
	for n := range 2 {
		w := likesWindow(n, 1, 0, manyKeys, func(i int) shard.PendingLike {
			if i%2 == n {
				return newAt(int64(n))
			}
			return changeAt(true, int64(n))
		})
		group.Go(func() {
			if applied, err := ledger.Apply(context.WithoutCancel(t.Context()), w); err != nil || !applied.OK {
				t.Errorf("%+v, %v", applied, err)
			}
		})
	}
	wait := func() bool {
		return slices.Equal(lines(t, db, `SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`), []string{"2"})
	}
	if !testproc.Poll(30*time.Second, time.Millisecond, wait) {
		t.Error("nothing waits at the gate")
	}
	must(t, tx.Commit())
	group.Wait()
	const sums = `SELECT sum(count) || ' ' || sum(likes) FROM counters UNION ALL SELECT count(*) || ' ' || max(at) - min(at) FROM likes WHERE liked`
	if got := lines(t, db, sums); !slices.Equal(got, []string{fmt.Sprint(manyKeys, " ", manyKeys), fmt.Sprint(manyKeys, " 00:00:00")}) {
		t.Errorf("counters and likes are %q", got)
	}
	finds(t, ledger)
	ledger.Close()
	if deadlocks(t, url) == 0 {
		t.Error("the windows did not wait for each other")
	}
}

// Somebody adds a row by hand while a window has it for new. The window is applied on top of it.
func TestPostgresNewLikeMeetsARow(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	tx, err := db.BeginTx(t.Context(), nil)
	must(t, err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), `INSERT INTO likes (key, actor, liked, at) VALUES ('likes/é:0', 'actor-77', false, to_timestamp(1))`)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		w := likesWindow(1, 5, 0, manyKeys, func(int) shard.PendingLike { return newAt(0) })
		applied, err := ledger.Apply(context.WithoutCancel(t.Context()), w)
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
	if got := lines(t, db, `SELECT count(*)::text FROM likes WHERE liked`); !slices.Equal(got, []string{fmt.Sprint(manyKeys)}) {
		t.Errorf("%q likes", got)
	}
	finds(t, ledger)
}
