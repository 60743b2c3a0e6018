package main_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// BenchmarkRedisMemory measures what sizing needs: bytes of Redis memory for each key that is pending in a window,
// each base that is cached, each request id, and each like: pending in a window, and remembered. It is as long for any -benchtime; use 1x.
func BenchmarkRedisMemory(b *testing.B) {
	const size = 100_000
	redis := redistest.Start(b)
	s := start(b, "--redis-url="+redis.URL(), "--postgres-url="+pgtest.NewDatabase(b), "--window=1h", "--hot-threshold=0",
		"--base-ttl=24h", "--missing-ttl=24h")
	c := dial(b, s)
	ctx := context.Background()
	key := func(i int) string { return fmt.Sprintf("views/post:%07d", i) }
	for b.Loop() {
		empty := redis.Info("used_memory")
		for from := 0; from < size; from += 10_000 {
			entries := make([]client.Entry, 10_000)
			for i := range entries {
				entries[i] = client.Entry{Key: key(from + i), Delta: 1}
			}
			_, err := c.BatchIncrement(ctx, entries)
			must(b, err)
		}
		pending := redis.Info("used_memory")
		for from := 0; from < size; from += 1_000 {
			keys := make([]string, 1_000)
			for i := range keys {
				keys[i] = key(from + i)
			}
			_, err := c.BatchGet(ctx, keys, client.Fresh())
			must(b, err)
		}
		cached := redis.Info("used_memory")
		inParallel(b, size, func(int) error {
			_, err := c.Increment(ctx, key(0), 1)
			return err
		})
		claimed := redis.Info("used_memory")
		inParallel(b, size, func(i int) error {
			_, err := c.Like(ctx, key(0), fmt.Sprintf("user:%07d", i))
			return err
		})
		liked := redis.Info("used_memory")
		redis.Do("EVAL", `for _, bucket in ipairs(redis.call('KEYS', 'plusone:*:likes:*')) do redis.call('DEL', bucket) end`, "0")
		remembered := liked - redis.Info("used_memory")
		b.ReportMetric(float64(pending-empty)/size, "B/pending-key")
		b.ReportMetric(float64(cached-pending)/size, "B/cached-key")
		b.ReportMetric(float64(claimed-cached)/size, "B/request-id")
		b.ReportMetric(float64(remembered)/size, "B/remembered-like")
		b.ReportMetric(float64(liked-remembered-claimed-(claimed-cached))/size, "B/pending-like")
		redis.Do("FLUSHALL")
	}
}

// inParallel makes n calls, 100 at a time.
func inParallel(b *testing.B, n int, call func(i int) error) {
	var callers sync.WaitGroup
	for first := range 100 {
		callers.Go(func() {
			for i := first; i < n; i += 100 {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
}
