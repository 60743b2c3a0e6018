package limit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
)

func newRedis(t testing.TB, cluster bool, addrs ...string) *Redis {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: addrs, DisableCache: true, ForceSingleClient: !cluster, ConnWriteTimeout: 3 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	r := NewRedis(client, RedisConfig{Tags: []string{"0", "1", "2", "3"}, Cluster: cluster, Metrics: newMetrics()})
	t.Cleanup(func() {
		_ = r.Close(context.WithoutCancel(t.Context()))
		client.Close()
	})
	return r
}

func TestRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newRedis(t, false, server.Addr)
	exercise(t, r, func(d time.Duration) { <-time.After(d) })
	if n := valueOf(t, r.cfg.Metrics.knownEmpty); n == 0 {
		t.Error("what is known to be empty was asked of Redis")
	}
	// All that it holds has a name of plusone's and goes by itself.
	for key := range strings.SplitSeq(server.Do("EVAL", `return table.concat(redis.call('KEYS', '*'), '\n')`, "0"), "\n") {
		if ttl := server.Do("PTTL", key); !strings.HasPrefix(key, "plusone:{") || strings.HasPrefix(ttl, "-") {
			t.Errorf("key %q, TTL %s ms", key, ttl)
		}
	}
}

// A bucket that Redis forgot is full, also for a server that knew it to be empty.
func TestRedisForgets(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newRedis(t, false, server.Addr)
	want := Want{Kind: Caller, Scope: "views", Who: "web", Rate: rate(t, "1/1h"), Cost: 1}
	take(t, r, want)
	for i := range 2 {
		if v := take(t, r, want); v.Allowed || v.Wait < 59*time.Minute {
			t.Errorf("try %d of an empty bucket: %+v", i, v)
		}
	}
	server.Do("FLUSHALL")
	for deadline := time.Now().Add(5 * maxKnown); !take(t, r, want).Allowed; {
		if time.Now().After(deadline) {
			t.Fatal("a bucket that Redis forgot is still known to be empty")
		}
	}
	if valueOf(t, r.cfg.Metrics.knownEmpty) == 0 {
		t.Error("what is known to be empty was asked of Redis")
	}
}

// A limit holds for all servers together.
func TestRedisIsShared(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	shared := newRedis(t, false, server.Addr)
	race(t, shared, ticketTaker{shared}, newRedis(t, false, server.Addr), ticketTaker{newRedis(t, false, server.Addr)})
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3, 0)
	addrs := make([]string, 0, 3)
	for _, n := range cluster.Nodes() {
		addrs = append(addrs, n.Addr)
	}
	r := newRedis(t, true, addrs...)
	for i, who := range []string{"a", "b", "c", "d", "e"} {
		wants := []Want{
			{Kind: ActorKey, Who: who, Key: "views/1", Rate: rate(t, "2/1h"), Cost: 1},
			{Kind: Actor, Who: who, Rate: rate(t, "2/1h"), Cost: 1},
			{Kind: Caller, Who: "web", Rate: rate(t, "4/1h"), Cost: 1},
		}
		if v := take(t, r, wants...); v.Allowed != (i < 4) || !v.Allowed && v.Lacking != 2 {
			t.Errorf("actor %s: %+v", who, v)
		}
	}
}

// A Redis that cannot be asked is an error soon, and not for longer than it lasts.
func TestRedisIsDown(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newRedis(t, false, server.Addr)
	want := []Want{{Kind: Caller, Who: "web", Rate: rate(t, "100/1s"), Cost: 1}}
	take(t, r, want...)
	server.Stop()
	began := time.Now()
	if _, err := r.Take(t.Context(), want); !errors.Is(err, counter.ErrUnavailable) || time.Since(began) > 3*scriptTimeout {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Take(ctx, want); !errors.Is(err, counter.ErrUnavailable) || time.Since(began) > 3*scriptTimeout {
		t.Errorf("a caller who waits for 20ms, after %v: %v", time.Since(began), err)
	}
	server.Cont()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := r.Take(t.Context(), want); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	// Redis that forgets everything, its scripts too, is as one that is new.
	server.Kill()
	server.Restart()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := r.Take(t.Context(), want); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A full Redis says so.
func TestRedisIsFull(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.MaxMemory(3<<20, "volatile-lfu"))
	r := newRedis(t, false, server.Addr)
	want := []Want{{Kind: Caller, Who: "web", Rate: rate(t, "100/1s"), Cost: 1}}
	take(t, r, want...)
	server.Do("CONFIG", "SET", "maxmemory", "1")
	if _, err := r.Take(t.Context(), want); !errors.Is(err, counter.ErrFull) {
		t.Error(err)
	}
}

// Distinct actors of one caller.
func BenchmarkRedis(b *testing.B) {
	server := redistest.Start(b)
	r := newRedis(b, false, server.Addr)
	actor, caller := rate(b, "600/1m"), rate(b, "1000000/1s")
	actors := make([]string, 10_000)
	for i := range actors {
		actors[i] = fmt.Sprintf("user:%07d", i)
	}
	var n atomic.Int64
	before := cpu(server)
	b.SetParallelism(100)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.Take(b.Context(), []Want{
				{Kind: Actor, Scope: "views 600/1m0s/600", Who: actors[n.Add(1)%int64(len(actors))], Rate: actor, Cost: 1},
				{Kind: Caller, Scope: "views 1000000/1s/1000000", Who: "web", Rate: caller, Cost: 1},
			}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric((cpu(server)-before)*1e9/float64(b.N), "redis-ns/op")
}

// cpu is the CPU time of a server, in seconds.
func cpu(server *redistest.Server) (seconds float64) {
	for line := range strings.Lines(server.Do("INFO", "cpu")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			n, _ := strconv.ParseFloat(value, 64) // a number, or it counts for nothing
			seconds += n
		}
	}
	return seconds
}
