package shard_test

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/shard"
)

// auditedLedger is what an audit reads of the ledger: one shard's totals, of one watermark. After each snapshot it calls
// read with the number of it.
type auditedLedger struct {
	watermark     int64
	totals, likes map[string]int64
	reads         int
	read          func(n int)
}

func (l *auditedLedger) Bases(_ context.Context, keys []string) (shard.LedgerBases, error) {
	b := shard.LedgerBases{Watermarks: []int64{l.watermark}}
	for _, key := range keys {
		if total, ok := l.totals[key]; ok {
			b.Rows = append(b.Rows, shard.LedgerRow{Key: key, Total: total, Likes: l.likes[key]})
		}
	}
	l.reads++
	if l.read != nil {
		l.read(l.reads)
	}
	return b, nil
}

// auditFixture is a shard whose bases are a: 10, b: 20 of which 2 by likes, and none: 0; and its ledger.
type auditFixture struct {
	*fixture
	client rueidis.Client
	redis  *shard.Redis
	ledger *auditedLedger
	prefix string
}

func newAuditFixture(t *testing.T) *auditFixture {
	t.Helper()
	client := newClient(t, redistest.Start(t))
	redis, err := shard.NewClockedRedis(client, shard.RedisConfig{Shards: 1, Window: 5 * time.Second, Dedupe: time.Minute, MaxSpread: 3}, clockKey)
	must(t, err)
	f := &auditFixture{
		fixture: clockedFixture(t, client), client: client, redis: redis, prefix: "plusone:{" + shard.Tags(1)[0] + "}:",
		ledger: &auditedLedger{
			totals: map[string]int64{"a": 10, "b": 20}, likes: map[string]int64{"b": 2},
		},
	}
	f.Scripts = redis
	f.set(t, epochMS)
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 10}, shard.Base{Key: "b", Total: 20, Likes: 2}, shard.Base{Key: "none"})
	return f
}

// audit returns the lines of an audit: key, base and what it should be.
func (f *auditFixture) audit(t *testing.T, drop bool) (found []string, err error) {
	t.Helper()
	dropped := 0
	compared, err := f.redis.AuditBases(t.Context(), shard.BaseAudit{
		Ledger: f.ledger, Drop: drop, Patience: time.Second,
		Report: func(d shard.BaseDifference) error {
			found = append(found, fmt.Sprint(d.Key, " ", d.Base, " ", d.Ledger))
			return nil
		},
		Dropped:  func(shard.BaseDifference) { dropped++ },
		Progress: func(int) {},
	})
	if err == nil && (compared == 0 || drop && dropped != len(found)) {
		t.Errorf("%d bases compared, %d dropped", compared, dropped)
	}
	sort.Strings(found)
	return found, err
}

func (f *auditFixture) finds(t *testing.T, want ...string) {
	t.Helper()
	got, err := f.audit(t, false)
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the audit finds %q, want %q", got, want)
	}
}

// apply has the window of now, which holds 5 for a, applied by the ledger with another amount. It is not moved yet.
func (f *auditFixture) apply(t *testing.T, amount int64) (window int64) {
	t.Helper()
	window = f.now
	f.add(t, 0, counter.Entry{Key: "a", Delta: 5})
	f.finds(t)
	f.advance(t, windowMS)
	f.seal(t, 0, f.ledger.watermark, "g", sealReply{Windows: 1, Sealed: []int64{window}})
	f.ledger.watermark = window
	f.ledger.totals["a"] += amount
	return window
}

func (f *auditFixture) finish(t *testing.T, window int64, reload bool) {
	t.Helper()
	f.begin(t, 0, window, 0, "g", false)
	must(t, f.Move(t.Context(), 0, window, shard.Moves{Deltas: []shard.MovedDelta{{Key: "a", Delta: 5, Reload: reload}}}))
	must(t, f.End(t.Context(), 0, window, 0))
}

func TestAuditBases(t *testing.T) {
	t.Parallel()
	t.Run("differing", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		f.finds(t)
		base := f.prefix + "base:0:"
		command(t, f.client, "SET", base+"a", "11")
		command(t, f.client, "SET", base+"b", "20:3")
		command(t, f.client, "SET", base+"none", "-1")
		command(t, f.client, "SET", f.prefix+"base:old:a", "7") // of no current generation
		command(t, f.client, "SET", "plusone:{other}:base:0:a", "7")
		want := []string{"a 11 10", "b 20:3 20:2", "none -1 0"}
		f.finds(t, want...)
		got, err := f.audit(t, true)
		must(t, err)
		equal(t, "dropped", got, want)
		equal(t, "bases left", strings.Contains(strings.Join(allKeys(t, f.client), " "), base), false)
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 10})
		f.finds(t)
	})
	t.Run("applied, not moved", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		window := f.apply(t, 5)
		f.finds(t)
		f.begin(t, 0, window, 0, "g", false)
		f.finds(t)
		f.finish(t, window, false)
		f.finds(t)
		f.ledger.totals["a"]++
		f.finds(t, "a 15 16")
	})
	t.Run("applied otherwise, moved meanwhile", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		window := f.apply(t, 3)
		f.ledger.read = func(n int) {
			if n == 5 {
				f.finish(t, window, true)
			}
		}
		f.ledger.reads = 0
		f.finds(t)
		equal(t, "looks at the ledger", f.ledger.reads >= 5, true)
	})
	t.Run("applied otherwise, never moved", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		f.apply(t, 3)
		if found, err := f.audit(t, false); err == nil || !strings.Contains(err.Error(), "is a worker running") || found != nil {
			t.Errorf("the audit finds %q, %v", found, err)
		}
	})
	t.Run("moved while the ledger was read", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		window := f.apply(t, 5)
		current := *f.ledger
		f.ledger.watermark, f.ledger.totals = 0, map[string]int64{"a": 10, "b": 20}
		f.ledger.reads = 0
		f.ledger.read = func(n int) {
			if n == 1 {
				f.finish(t, window, false)
				f.ledger.watermark, f.ledger.totals = current.watermark, current.totals
			}
		}
		f.finds(t)
		equal(t, "looks at the ledger", f.ledger.reads, 2)
	})
	t.Run("ledger set back", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		f.finish(t, f.apply(t, 5), false)
		f.ledger.watermark = 0
		if _, err := f.audit(t, false); err == nil || !strings.Contains(err.Error(), "was the ledger set back") {
			t.Errorf("the audit ends with %v", err)
		}
	})
	t.Run("right again at the second look", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		command(t, f.client, "SET", f.prefix+"base:0:a", "11")
		f.ledger.reads = 0
		f.ledger.read = func(n int) {
			if n == 2 {
				command(t, f.client, "DEL", f.prefix+"base:0:a")
			}
		}
		f.finds(t)
	})
	t.Run("more shards than the ledger", func(t *testing.T) {
		t.Parallel()
		f := newAuditFixture(t)
		redis, err := shard.NewRedis(f.client, shard.RedisConfig{Shards: 1, Window: time.Second, Dedupe: time.Minute})
		must(t, err)
		_, err = redis.AuditBases(t.Context(), shard.BaseAudit{Ledger: noShards{}})
		if err == nil {
			t.Error("a ledger without shards is not noticed")
		}
	})
}

type noShards struct{}

func (noShards) Bases(context.Context, []string) (shard.LedgerBases, error) {
	return shard.LedgerBases{}, nil
}

// TestAuditBasesOfMany audits more bases than one chunk holds, on a cluster with replicas.
func TestAuditBasesOfMany(t *testing.T) {
	t.Parallel()
	const keys = 3000
	cluster := redistest.StartCluster(t, 3, 1)
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: cluster.Addrs, DisableCache: true})
	must(t, err)
	t.Cleanup(client.Close)
	const shards = 6
	redis, err := shard.NewRedis(client, shard.RedisConfig{Shards: shards, Window: time.Second, Dedupe: time.Minute})
	must(t, err)
	ledger := &manyBases{wrong: map[string]bool{"key/7": true, "key/2500": true}}
	bases := make([][]shard.Base, shards)
	for i := range keys {
		key := fmt.Sprint("key/", i)
		n := shard.Home(key, shards)
		bases[n] = append(bases[n], shard.Base{Key: key, Total: int64(len(key)), TTL: time.Hour})
	}
	for n := range shards {
		_, err := redis.Load(t.Context(), n, 0, bases[n])
		must(t, err)
	}
	var found []string
	compared, err := redis.AuditBases(t.Context(), shard.BaseAudit{
		Ledger: ledger,
		Report: func(d shard.BaseDifference) error { found = append(found, d.Key); return nil },
	})
	must(t, err)
	sort.Strings(found)
	equal(t, "differing", found, []string{"key/2500", "key/7"})
	equal(t, "compared", compared, keys)
}

// manyBases holds of every key the length of its name, but of some.
type manyBases struct{ wrong map[string]bool }

func (l *manyBases) Bases(_ context.Context, keys []string) (shard.LedgerBases, error) {
	b := shard.LedgerBases{Watermarks: make([]int64, 6)}
	for _, key := range keys {
		row := shard.LedgerRow{Key: key, Shard: shard.Home(key, 6), Total: int64(len(key))}
		if l.wrong[key] {
			row.Total++
		}
		b.Rows = append(b.Rows, row)
	}
	return b, nil
}
