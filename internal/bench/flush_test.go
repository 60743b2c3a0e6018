package bench_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/shard"
)

const (
	flushedKeys = 100_000
	// rawRows are those of one statement of the yardstick.
	rawRows = 10_000
	// benchShards is how many there are by default.
	benchShards = 8
)

// flushWindow is the length of a window of TestFlush.
const flushWindow = time.Second

// TestFlush measures how fast a worker drains windows that are due, beside an upsert of as many totals: a changed key costs the
// ledger a row. The worker runs all the time, and is stopped until there is something to drain: neither its start nor the wait
// for a window's end is draining.
func TestFlush(t *testing.T) {
	f := newFlushed(t)
	if _, err := f.conn.Exec(t.Context(), `CREATE TABLE raw (key text, shard smallint, count bigint NOT NULL, PRIMARY KEY (key, shard))`); err != nil {
		t.Fatal(err)
	}
	size := scaled(flushedKeys)
	for _, known := range []bool{false, true} {
		work := fmt.Sprintf("flush of %d changed keys", size)
		if known {
			work += " that the ledger knows"
		}
		var drained, ratios []float64
		var cpu [3][]float64 // of worker, Redis, Postgres
		for run := range *runsFlag {
			keys := make([]string, size)
			for k := range keys {
				keys[k] = fmt.Sprintf("run%d/post:%07d", run, k)
			}
			perSecond, used := f.drain(t, keys)
			drained = append(drained, perSecond)
			ratios = append(ratios, perSecond/upsert(t, f.conn, keys))
			for i := range used {
				cpu[i] = append(cpu[i], float64(used[i].Nanoseconds())/1e3/float64(size))
			}
		}
		table.add(row{
			work: work, against: "upserts of the same totals from unnest",
			throughput: spread(drained, "%.0f"), target: "≥ 0.7 of the rows a second",
			ratios: "keys a second " + spread(ratios, "%.2f"),
			cost:   fmt.Sprintf("worker %.2f µs, Redis %.2f µs, Postgres %.2f µs", median(cpu[0]), median(cpu[1]), median(cpu[2])),
		})
	}
}

// flushed is a deployment whose windows are drained by a worker that can be stopped.
type flushed struct {
	client *client.Client
	worker *plusonetest.Instance
	redis  rueidis.Client
	conn   *pgx.Conn
	pids   [3]int // of worker, Redis, Postgres
}

func newFlushed(t *testing.T) *flushed {
	t.Helper()
	postgres := pgtest.Start(t)
	redis := redistest.Start(t)
	stores := []string{"--redis-url=" + redis.URL(), "--postgres-url=" + postgres.URL, "--window=" + flushWindow.String()}
	i := plusonetest.Start(t, build(t), append(stores, "--flush=false")...)
	worker := plusonetest.Launch(t, build(t), append([]string{"flush"}, stores...)...)
	worker.WaitReady()
	return &flushed{
		client: plusonetest.Dial(t, []*plusonetest.Instance{i}), worker: worker, redis: connectRedis(t, redis.URL()), conn: pgtest.Connect(t, postgres.URL),
		pids: [3]int{worker.Process.PID(), redis.PID(), postgres.PID()},
	}
}

// drain changes keys while the worker is stopped, and returns how many a second it drains, and the CPU time for all.
func (f *flushed) drain(t *testing.T, keys []string) (perSecond float64, cpu [3]time.Duration) {
	t.Helper()
	f.worker.Signal(syscall.SIGSTOP)
	changeAll(t, f.client, keys)
	wait(flushWindow)
	for i, pid := range f.pids {
		cpu[i] = -cpuTime(t, pid)
	}
	began := time.Now()
	f.worker.Signal(syscall.SIGCONT)
	// What was scanned and applied was also moved, once nothing is left.
	done := testproc.Poll(plusonetest.Patience, 5*time.Millisecond, func() bool { return len(oldestWindows(t, f.redis)) == 0 })
	if !done {
		t.Fatal("the keys are not drained")
	}
	elapsed := time.Since(began)
	for i, pid := range f.pids {
		cpu[i] += cpuTime(t, pid)
	}
	return float64(len(keys)) / elapsed.Seconds(), cpu
}

// oldestWindows are the times, by the Redis clock, at which the oldest windows of the shards that have any began.
func oldestWindows(t *testing.T, client rueidis.Client) []time.Time {
	t.Helper()
	var commands rueidis.Commands
	for _, tag := range shard.Tags(benchShards) {
		commands = append(commands, client.B().Lindex().Key("plusone:{"+tag+"}:windows").Index(0).Build())
	}
	var began []time.Time
	for _, answer := range client.DoMulti(t.Context(), commands...) {
		id, err := answer.AsInt64()
		switch {
		case err == nil:
			began = append(began, time.UnixMilli(id))
		case !rueidis.IsRedisNil(err):
			t.Fatal(err)
		}
	}
	return began
}

func connectRedis(t *testing.T, url string) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.MustParseURL(url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

const rawSQL = `INSERT INTO raw AS r SELECT u.key, 0, u.delta FROM unnest($1::text[], $2::bigint[]) AS u (key, delta)
ON CONFLICT (key, shard) DO UPDATE SET count = r.count + excluded.count`

// upsert is the yardstick: it returns how many keys a second one transaction takes.
func upsert(t *testing.T, conn *pgx.Conn, keys []string) float64 {
	t.Helper()
	began := time.Now()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for chunk := range slices.Chunk(keys, rawRows) {
		deltas := make([]int64, len(chunk))
		for i := range deltas {
			deltas[i] = 1
		}
		if _, err := tx.Exec(t.Context(), rawSQL, chunk, deltas); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return float64(len(keys)) / time.Since(began).Seconds()
}
