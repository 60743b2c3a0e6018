package flush_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/shard"
)

// TestPostgresLikesAreLockedInOrder writes the same pairs from two handles at once, which take them up in different
// orders. Each transaction waits for the other; they never wait in a circle, which the server would only break
// after a second.
func TestPostgresLikesAreLockedInOrder(t *testing.T) {
	t.Parallel()
	const rounds, pairs = 30, 200
	pair := func(i int) counter.Pair {
		return counter.Pair{Key: fmt.Sprint("likes/", i%7), Actor: fmt.Sprint("actor-", i)}
	}
	for name, test := range map[string]struct {
		mode  flush.Mode
		write func(l *flush.Postgres, n, round int) error
	}{
		"groups": {flush.ModeDirect, func(l *flush.Postgres, n, round int) error {
			var group []counter.Change
			for i := range pairs {
				set := ledgertest.Like
				if (n+round+i)%2 == 0 {
					set = ledgertest.Unlike
				}
				group = append(group, set(pair(i).Key, pair(i).Actor))
			}
			if n == 1 {
				slices.Reverse(group)
			}
			_, _, err := l.Commit(context.Background(), group)
			return err
		}},
		"windows": {flush.ModeSharded, func(l *flush.Postgres, n, round int) error {
			likes := make(map[counter.Pair]shard.PendingLike)
			for i := range pairs {
				at := int64(1_900_000_000_000_000 + 2*round + n)
				since := at - int64((n+i)%2) // half are repeats, the other half in the other window
				likes[pair(i)] = shard.PendingLike{Liked: (round+i)%2 == 0, Micros: at, Since: since}
			}
			_, err := l.Apply(context.Background(), flush.Window{Shard: n, ID: int64(round + 1), WindowPart: shard.WindowPart{Likes: likes}})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := newPostgres(t, test.mode)
			ledgers := []*flush.Postgres{openPostgres(t, url), openPostgres(t, url)}
			for round := range rounds {
				var group sync.WaitGroup
				for n, ledger := range ledgers {
					group.Go(func() {
						if err := test.write(ledger, n, round); err != nil {
							t.Error(err)
						}
					})
				}
				group.Wait()
			}
			if n := deadlocks(t, url); n != 0 {
				t.Errorf("%d deadlocks", n)
			}
		})
	}
}

// deadlocks counts those of a database. Sessions report them at the latest when they end, so all others are ended.
func deadlocks(t *testing.T, url string) (n int) {
	t.Helper()
	db := openDB(t, "pgx", url)
	mustExec(t, db, `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`)
	if err := db.QueryRowContext(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
