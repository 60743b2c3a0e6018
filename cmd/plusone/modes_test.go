package main_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "modernc.org/sqlite"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// mode is a way to deploy plusone.
type mode struct {
	name string
	// args make a fresh deployment. total reads a counter from the public SQL view counter_totals.
	deploy func(t *testing.T) (args []string, total func(t *testing.T, key string) int64)
}

var modes = []mode{
	{"embedded", func(t *testing.T) ([]string, func(*testing.T, string) int64) {
		file := filepath.Join(testproc.TempDir(t), "plusone.db")
		return []string{"--data=" + file}, func(t *testing.T, key string) int64 { return sqliteTotal(t, file, key) }
	}},
	{"direct", func(t *testing.T) ([]string, func(*testing.T, string) int64) {
		url := pgtest.NewDatabase(t)
		return []string{"--postgres-url=" + url, "--postgres-max-conns=6"},
			func(t *testing.T, key string) int64 { return postgresTotal(t, url, key) }
	}},
	{"sharded", func(t *testing.T) ([]string, func(*testing.T, string) int64) {
		url := pgtest.NewDatabase(t)
		redis := redistest.Start(t, redistest.AppendFsyncAlways())
		return shardedArgs(redis.URL(), url), func(t *testing.T, key string) int64 { return postgresTotal(t, url, key) }
	}},
	{"cluster", func(t *testing.T) ([]string, func(*testing.T, string) int64) {
		url := pgtest.NewDatabase(t)
		cluster := redistest.StartCluster(t, 3, 0, redistest.AppendFsyncAlways())
		redis := "redis://" + cluster.Addrs[0] + "?addr=" + strings.Join(cluster.Addrs[1:], "&addr=")
		return shardedArgs(redis, url), func(t *testing.T, key string) int64 { return postgresTotal(t, url, key) }
	}},
}

// shardedArgs are those of sharded mode, made quick.
func shardedArgs(redis, postgres string) []string {
	return []string{
		"--redis-url=" + redis, "--postgres-url=" + postgres, "--postgres-max-conns=6",
		"--shards=4", "--window=200ms", "--flush-interval=50ms",
	}
}

const totalSQL = `SELECT count FROM counter_totals WHERE key = $1`

func postgresTotal(t *testing.T, url, key string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	must(t, err)
	defer func() { must(t, conn.Close(ctx)) }()
	var total int64
	if err := conn.QueryRow(ctx, totalSQL, key).Scan(&total); !errors.Is(err, pgx.ErrNoRows) {
		must(t, err)
	}
	return total
}

func sqliteTotal(t *testing.T, file, key string) int64 {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?mode=ro")
	must(t, err)
	defer func() { must(t, db.Close()) }()
	var total int64
	if err := db.QueryRow(totalSQL, key).Scan(&total); !errors.Is(err, sql.ErrNoRows) {
		must(t, err)
	}
	return total
}

func TestContract(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, total := m.deploy(t)
			s := start(t, args...)
			c := dial(t, s)
			exerciseIncrement(t, c)
			exerciseBatch(t, c)

			want := strings.Replace(m.name, "cluster", "sharded", 1)
			if code, body := s.Page("/healthz"); code != 200 || body != "ok "+want+"\n" {
				t.Errorf("/healthz answers %d %q", code, body)
			}
			if code, body := s.Page("/metrics"); code != 200 || !strings.Contains(body, "\nplusone_cache_misses_total ") ||
				!strings.Contains(body, "\nprocess_cpu_seconds_total ") {
				t.Errorf("/metrics answers %d without the metrics of plusone or of the process", code)
			}
			eventually(t, "counter_totals shows the counts", func() bool {
				return total(t, "views/post:42") == 6 && total(t, "batch/0") == 20
			})
			s.Terminate()
		})
	}
}

func exerciseIncrement(t *testing.T, c *client.Client) {
	ctx := context.Background()
	const key = "views/post:42"
	receipt, err := c.Increment(ctx, key, 1)
	must(t, err)
	if receipt.Outcome != client.Applied {
		t.Errorf("outcome is %v", receipt.Outcome)
	}
	got, err := c.Get(ctx, key, client.MinAsOf(receipt.AsOf))
	must(t, err)
	if got.Count != 1 || got.Stale || got.AsOf.Before(receipt.AsOf) {
		t.Errorf("read of one's own write is %+v, the write was at %v", got, receipt.AsOf)
	}

	for _, want := range []client.Outcome{client.Applied, client.Duplicate} {
		receipt, err := c.Increment(ctx, key, 7, client.WithRequestID("event-1093"))
		must(t, err)
		if receipt.Outcome != want {
			t.Errorf("outcome is %v, want %v", receipt.Outcome, want)
		}
	}
	if _, err := c.Increment(ctx, key, 8, client.WithRequestID("event-1093")); !errors.Is(err, client.ErrRequestIDReused) {
		t.Errorf("reuse of a request id: %v", err)
	}
	for _, want := range []client.Outcome{client.Applied, client.AlreadyCounted} {
		receipt, err := c.Increment(ctx, key, -2, client.OncePer("user:1", 7*24*time.Hour))
		must(t, err)
		if receipt.Outcome != want {
			t.Errorf("outcome is %v, want %v", receipt.Outcome, want)
		}
	}
	if _, err := c.Increment(ctx, key, 1e12+1); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("delta beyond the limit: %v", err)
	}
	if got := count(t, c, key); got != 6 {
		t.Errorf("%s is %d, want 6", key, got)
	}
	if got := count(t, c, "views/never-seen"); got != 0 {
		t.Errorf("a key never seen is %d", got)
	}
}

// exerciseBatch sends a batch over many keys, and so over all shards, again and again under one id.
func exerciseBatch(t *testing.T, c *client.Client) {
	ctx := context.Background()
	const keys = 1000
	var entries []client.Entry
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("batch/%d", i)
		entries = append(entries, client.Entry{Key: names[i], Delta: int64(i + 1)}, client.Entry{Key: names[i], Delta: 9})
	}
	for range 2 { // two batches, each sent three times
		id := fmt.Sprintf("batch-%d", time.Now().UnixNano())
		for try := range 3 {
			slices.Reverse(entries)
			receipt, err := c.BatchIncrement(ctx, entries, client.WithRequestID(id))
			must(t, err)
			if want := []client.Outcome{client.Applied, client.Duplicate}[min(try, 1)]; receipt.Outcome != want {
				t.Errorf("try %d: outcome is %v, want %v", try, receipt.Outcome, want)
			}
		}
	}
	counts, err := c.BatchGet(ctx, names, client.Fresh())
	must(t, err)
	for i, got := range counts {
		if want := int64(2 * (i + 10)); got.Key != names[i] || got.Count != want {
			t.Fatalf("%d: %s is %d, want %s is %d", i, got.Key, got.Count, names[i], want)
		}
	}
}

// migratedDatabase is a ledger of direct mode that was never used.
func migratedDatabase(t *testing.T) string {
	t.Helper()
	url := pgtest.NewDatabase(t)
	if output, code := execute(t, nil, "migrate", "--postgres-url="+url); code != 0 {
		t.Fatalf("migrate: exit code %d:\n%s", code, output)
	}
	return url
}

func runSQL(t *testing.T, url, statement string) {
	t.Helper()
	ctx := within(t, patience)
	conn, err := pgx.Connect(ctx, url)
	must(t, err)
	defer func() { must(t, conn.Close(ctx)) }()
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
}
