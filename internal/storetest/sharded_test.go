package storetest_test

import (
	"cmp"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

const (
	shards       = 8
	window       = 100 * time.Millisecond
	hotThreshold = 50
	hotKey       = "hot/key"
)

func TestSharded(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, dedupe, func(t *testing.T) *storetest.Fixture {
		return newDeployment(t, redistest.Start(t).Addr).fixture(t)
	})
}

func TestShardedCluster(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, dedupe, func(t *testing.T) *storetest.Fixture {
		return newDeployment(t, redistest.StartCluster(t, 3, 0).Addrs...).fixture(t)
	})
}

// deployment is a Redis and a Postgres for sharded mode.
type deployment struct {
	addrs       []string
	postgresURL string
	ledger      *flush.Postgres
	cluster     bool
}

func newDeployment(t *testing.T, addrs ...string) *deployment {
	d := &deployment{addrs: addrs, postgresURL: pgtest.NewDatabase(t), cluster: len(addrs) > 1}
	d.ledger = openPostgres(t, d.postgresURL, flush.Settings{
		Mode: flush.ModeSharded, Shards: shards, Window: window, DedupeWindow: dedupe,
	})
	return d
}

// fixture drains the deployment by two workers while the suite runs.
func (d *deployment) fixture(t *testing.T) *storetest.Fixture {
	for range 2 {
		startWorker(t, d.scripts(t), d.ledger)
	}
	return &storetest.Fixture{
		Open: func(t *testing.T) storetest.Store { return d.store(t) },
		SetTotal: func(t *testing.T, key string, total int64) {
			setTotal(t, d.postgresURL, key, shard.Home(key, shards), total)
		},
		AtomicBatches: !d.cluster,
	}
}

func (d *deployment) scripts(t *testing.T) *shard.Redis {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: d.addrs, DisableCache: true})
	must(t, err)
	t.Cleanup(client.Close)
	scripts, err := shard.NewRedis(client, shard.RedisConfig{Shards: shards, Window: window, Dedupe: dedupe, MaxSpread: 100})
	must(t, err)
	if scripts.Cluster() != d.cluster {
		t.Fatalf("Cluster() = %v", scripts.Cluster())
	}
	return scripts
}

func (d *deployment) store(t *testing.T) *shard.Store {
	store := shard.New(d.scripts(t), d.ledger, shard.Config{
		FingerprintKey: d.ledger.FingerprintKey(),
		Shards:         shards, Dedupe: dedupe, Cluster: d.cluster, BaseTTL: time.Hour, MissingTTL: time.Minute,
		HotThreshold: hotThreshold, Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quiet,
	})
	t.Cleanup(func() { _ = store.Close(context.WithoutCancel(t.Context())) })
	return store
}

func newWorker(scripts shard.Scripts, ledger flush.WindowLedger) *flush.Worker {
	return flush.NewWorker(scripts, ledger, flush.WorkerConfig{
		Shards: shards, Window: window, Interval: 10 * time.Millisecond, Concurrency: 2, StepTimeout: 10 * time.Second,
		Registerer: prometheus.NewRegistry(), Logger: quiet,
	})
}

func startWorker(t *testing.T, scripts shard.Scripts, ledger flush.WindowLedger) {
	worker := newWorker(scripts, ledger)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		worker.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

// drain runs a worker until the ledger holds all that was acknowledged.
func (d *deployment) drain(t *testing.T) {
	t.Helper()
	scripts := d.scripts(t)
	worker := newWorker(scripts, d.ledger)
	deadline := time.Now().Add(10 * time.Second)
	for n := 0; n < shards; {
		must(t, worker.Round(t.Context(), n))
		watermark, err := d.ledger.Watermark(t.Context(), n)
		must(t, err)
		sealed, err := scripts.Seal(t.Context(), n, watermark, "unused")
		must(t, err)
		if sealed.Windows == 0 {
			n++
		} else if time.Now().After(deadline) {
			t.Fatalf("shard %d is not drained: %d windows", n, sealed.Windows)
		}
	}
}

// ledgerTotal is what the public view says.
func (d *deployment) ledgerTotal(t *testing.T, key string) (total int64, rows int) {
	conn := pgtest.Connect(t, d.postgresURL)
	must(t, conn.QueryRow(t.Context(), `SELECT count FROM counter_totals WHERE key = $1`, key).Scan(&total))
	must(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM counters WHERE key = $1`, key).Scan(&rows))
	return total, rows
}

func apply(t *testing.T, s *shard.Store, c counter.Change, want counter.Outcome) {
	t.Helper()
	if r, err := s.Apply(t.Context(), c); err != nil || r.Outcome != want {
		t.Fatalf("Apply = %v, %v, want outcome %v", r.Outcome, err, want)
	}
}

func count(t *testing.T, s *shard.Store) int64 {
	t.Helper()
	r := s.Counts(t.Context(), []string{hotKey})[0]
	must(t, r.Err)
	return r.Value
}

// TestHotKeyIsFound adds to one key until it is spread, and checks that the changes reach several shards and
// none is lost on the way.
func TestHotKeyIsFound(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) []string{
		"standalone": func(t *testing.T) []string { return []string{redistest.Start(t).Addr} },
		"cluster":    func(t *testing.T) []string { return redistest.StartCluster(t, 3, 0).Addrs },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t, start(t)...)
			hammered, other := d.store(t), d.store(t)
			const key = hotKey
			added := int64(0)
			one := counter.Change{Entries: []counter.Entry{{Key: key, Delta: 1}}}
			spread := func() bool {
				replies, err := d.scripts(t).Read(t.Context(), []shard.KeyGroup{{Shard: shard.Home(key, shards), Keys: []string{key}}})
				must(t, err)
				return replies[0].Values[0].Marker != 0
			}
			for deadline := time.Now().Add(20 * time.Second); !spread(); {
				if time.Now().After(deadline) {
					t.Fatalf("not spread after %d changes", added)
				}
				for range 500 {
					apply(t, hammered, one, counter.Applied)
					added++
				}
			}
			for range 64 * shards * 2 {
				apply(t, hammered, one, counter.Applied)
				apply(t, other, one, counter.Applied)
				added += 2
			}
			if got := count(t, other); got != added {
				t.Errorf("count is %d, want %d", got, added)
			}
			d.drain(t)
			if total, rows := d.ledgerTotal(t, key); total != added || rows != shards {
				t.Errorf("ledger holds %d in %d rows, want %d in %d", total, rows, added, shards)
			}
			if got := count(t, d.store(t)); got != added {
				t.Errorf("count after the drain is %d, want %d", got, added)
			}
		})
	}
}

// TestSpreadKeyKeepsClaims sends each id by a server that knows that the key is spread and by one that does
// not: whatever the first applied is a duplicate to the second (rule 9).
func TestSpreadKeyKeepsClaims(t *testing.T) {
	t.Parallel()
	for name, width := range map[string]int{"all shards": 0, "three shards": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spreadKeyKeepsClaims(t, width)
		})
	}
}

func spreadKeyKeepsClaims(t *testing.T, width int) {
	d := newDeployment(t, redistest.Start(t).Addr)
	const key = hotKey
	now := time.Now()
	marker := now.Add(-4 * time.Minute)
	conn := pgtest.Connect(t, d.postgresURL)
	_, err := conn.Exec(t.Context(), `INSERT INTO counters (key, shard, count, spread, updated_at) VALUES ($1, $2, 100, $3, now())`,
		key, shard.Home(key, shards), shard.NewMarker(marker.UnixMilli(), width))
	must(t, err)
	knows := d.store(t)
	if got := count(t, knows); got != 100 { // and takes the marker to Redis
		t.Fatalf("count is %d, want 100", got)
	}
	want := int64(100)
	send := func(c counter.Change, first counter.Outcome, second counter.Outcome) {
		t.Helper()
		c.Entries = []counter.Entry{{Key: key, Delta: 1}}
		apply(t, knows, c, first)
		apply(t, d.store(t), c, second)
		apply(t, knows, c, second)
		if first == counter.Applied {
			want++
		}
	}
	for i := range 30 {
		for _, id := range []string{
			storetest.NewID(now), storetest.NewID(marker.Add(30 * time.Second)), fmt.Sprint("opaque-", i),
		} {
			send(counter.Change{RequestID: counter.ParseRequestID(id)}, counter.Applied, counter.Duplicate)
		}
		actor := fmt.Sprint("actor-", i)
		send(counter.Change{Actor: actor, OncePer: time.Minute, RequestID: counter.ParseRequestID(storetest.NewID(now))},
			counter.Applied, counter.Duplicate)
		send(counter.Change{Actor: actor, OncePer: 24 * time.Hour}, counter.Applied, counter.AlreadyCounted)
	}
	batch := counter.Change{
		Entries:   []counter.Entry{{Key: key, Delta: 5}, {Key: "cold/1", Delta: 5}, {Key: "cold/2", Delta: 5}},
		RequestID: counter.ParseRequestID(storetest.NewID(now)),
	}
	apply(t, knows, batch, counter.Applied)
	apply(t, d.store(t), batch, counter.Duplicate)
	want += 5
	if got := count(t, d.store(t)); got != want {
		t.Errorf("count is %d, want %d", got, want)
	}
	d.drain(t)
	if total, rows := d.ledgerTotal(t, key); total != want || rows != cmp.Or(width, shards) {
		t.Errorf("ledger holds %d in %d rows, want %d in %d", total, rows, want, cmp.Or(width, shards))
	}
	must(t, d.flushAll(t))
	if got := count(t, d.store(t)); got != want {
		t.Errorf("count after FLUSHALL is %d, want %d", got, want)
	}
}

func (d *deployment) flushAll(t *testing.T) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: d.addrs, DisableCache: true})
	must(t, err)
	defer client.Close()
	return client.Do(t.Context(), client.B().Flushall().Build()).Error()
}
