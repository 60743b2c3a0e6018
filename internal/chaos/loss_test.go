package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// What a crash of Redis takes back is its persistence setting, and no more: of what was acknowledged, all, some or none
// of what is not in Postgres yet.
func TestLoss(t *testing.T) {
	t.Parallel()
	everySecond := []redistest.Option{redistest.AppendFsyncAlways(), redistest.Config("appendfsync", "everysec")}
	for _, c := range []struct {
		setting, crash string
		redis          []redistest.Option
		power          bool
		loses          bool
	}{
		{"no append-only file", "kill -9", nil, false, true},
		{"appendfsync everysec", "kill -9", everySecond, false, false},
		{"appendfsync everysec", "power loss", everySecond, true, true},
		{"appendfsync always", "kill -9", []redistest.Option{redistest.AppendFsyncAlways()}, false, false},
	} {
		t.Run(c.setting+", "+c.crash, func(t *testing.T) {
			redis := redistest.Start(t, c.redis...)
			crash := redis.Restart // after a SIGKILL
			if c.power {
				crash = func() { redis.PowerLoss() }
			}
			acked, counted, last := lossOf(t, redis, crash)
			t.Logf("| %s | %s | %d | %d | the last %d ms |", c.setting, c.crash, acked, acked-counted, last.Milliseconds())
			if lost := acked - counted; lost < 0 || !c.loses && lost > 0 {
				t.Errorf("%d of %d acknowledged changes are lost", lost, acked)
			}
		})
	}
}

// lossOf increments a counter, crashes Redis under this load, and returns what was acknowledged before the crash, what is
// counted of it, and how long the last of the changes took that make the difference.
func lossOf(t *testing.T, redis *redistest.Server, crash func()) (acked, counted int64, last time.Duration) {
	binary, err := plusonetest.Build(failpoints)
	if err != nil {
		t.Fatal(err)
	}
	postgres := pgtest.Start(t)
	s := plusonetest.Start(t, binary, "--redis-url="+redis.URL(), "--postgres-url="+postgres.URL, "--shards=1", "--window=2s")
	c := plusonetest.Dial(t, []*plusonetest.Instance{s}, client.WithTimeout(patience))
	var mu sync.Mutex
	var moments []time.Time // of acknowledgements
	var stopped atomic.Bool
	const key = "views/loss"
	var group sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 16 {
		group.Go(func() {
			for !stopped.Load() {
				if _, err := c.Increment(ctx, key, 1); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				moments = append(moments, time.Now())
				mu.Unlock()
			}
		})
	}
	began := time.Now()
	d := &deployment{t: t}
	d.eventually("changes of 5 s are acknowledged", func() bool { return time.Since(began) > 5*time.Second })
	// What is acknowledged from here on, and what is under way, is not looked at: it is cut off.
	stopped.Store(true)
	mu.Lock()
	acked = int64(len(moments))
	mu.Unlock()
	crash()
	cancel()
	group.Wait()
	mu.Lock()
	late := int64(len(moments)) - acked
	mu.Unlock()
	// A read that settles: after the rollback, if it was one, was noticed.
	d.eventually("the count is drained", func() bool {
		got, err := c.Get(context.Background(), key, client.Fresh())
		if err != nil || got.Stale {
			return false
		}
		counted = got.Count
		return totalOf(t, postgres.URL, key) == counted
	})
	counted -= late
	if lost := acked - counted; lost > 0 {
		last = moments[acked-1].Sub(moments[acked-lost])
	}
	return acked, counted, last
}

func totalOf(t *testing.T, url, key string) (total int64) {
	d := &deployment{t: t, postgres: &pgtest.Server{URL: url}}
	if err := d.query(fmt.Sprintf(`SELECT count FROM counter_totals WHERE key = '%s'`, key), func(scan func(...any) error) error { return scan(&total) }); err != nil {
		t.Fatal(err)
	}
	return total
}
