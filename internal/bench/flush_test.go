package bench_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	flushedKeys = 100_000
	// rawRows are those of one statement of the yardstick.
	rawRows = 10_000
)

// TestFlush measures how fast a worker drains windows, beside an upsert of the same rows.
func TestFlush(t *testing.T) {
	postgres := pgtest.Start(t)
	redis := redistest.Start(t)
	stores := []string{"--redis-url=" + redis.URL(), "--postgres-url=" + postgres.URL}
	i := plusonetest.Start(t, build(t), append(stores, "--window=1s", "--flush=false")...)
	c := plusonetest.Dial(t, []*plusonetest.Instance{i})
	conn := connect(t, postgres.URL)
	if _, err := conn.Exec(t.Context(), `CREATE TABLE raw (key text, shard smallint, count bigint NOT NULL, PRIMARY KEY (key, shard))`); err != nil {
		t.Fatal(err)
	}
	size := scaled(flushedKeys)
	var drained, raw, ratios []float64
	for run := range *runsFlag {
		keys := make([]string, size)
		for k := range keys {
			keys[k] = fmt.Sprintf("run%d/post:%07d", run, k)
		}
		drained = append(drained, drain(t, c, conn, keys, stores))
		raw = append(raw, upsert(t, conn, keys))
		ratios = append(ratios, drained[run]/raw[run])
	}
	table.add(row{
		work: fmt.Sprintf("flush of %d changed keys, with the start of the worker", size), against: "an upsert of the same rows from unnest",
		throughput: spread(drained, "%.0f"), ratios: "rows a second " + spread(ratios, "%.2f"), target: "≥ 0.7 of the rows a second",
	})
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// drain changes keys and returns how many a second a worker drains, once their window has ended.
func drain(t *testing.T, c *client.Client, conn *pgx.Conn, keys, stores []string) float64 {
	t.Helper()
	changeAll(t, c, keys)
	wait(time.Second)
	began := time.Now()
	worker := plusonetest.Launch(t, build(t), append([]string{"flush", "--window=1s"}, stores...)...)
	done := testproc.Poll(plusonetest.Patience, 10*time.Millisecond, func() bool {
		var n int
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM counters WHERE key = ANY ($1)`, sampleOf(keys)).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == len(sampleOf(keys))
	})
	if !done {
		t.Fatal("the keys are not drained")
	}
	elapsed := time.Since(began)
	worker.Terminate()
	return float64(len(keys)) / elapsed.Seconds()
}

// sampleOf are the keys that were changed last, enough to have some of each shard: windows are drained whole, and in order.
func sampleOf(keys []string) []string { return keys[max(0, len(keys)-500):] }

// upsert returns how many rows a second an upsert takes.
func upsert(t *testing.T, conn *pgx.Conn, keys []string) float64 {
	t.Helper()
	began := time.Now()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for from := 0; from < len(keys); from += rawRows {
		chunk := keys[from:min(from+rawRows, len(keys))]
		deltas := make([]int64, len(chunk))
		for i := range deltas {
			deltas[i] = 1
		}
		_, err := tx.Exec(t.Context(), `INSERT INTO raw AS r SELECT u.key, 0, u.delta FROM unnest($1::text[], $2::bigint[]) AS u (key, delta)
ON CONFLICT (key, shard) DO UPDATE SET count = r.count + excluded.count`, chunk, deltas)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return float64(len(keys)) / time.Since(began).Seconds()
}
