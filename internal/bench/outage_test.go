package bench_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	outageKeys = 100_000
	// outageRate is in increments a second, in batches of a thousand, besides single ones that are timed.
	outageRate  = 20_000
	outageBatch = 1000
	// outageWindow is the length of a window.
	outageWindow = 5 * time.Second
)

// TestOutage takes Postgres away under load, and measures what callers notice and how fast it is caught up with.
func TestOutage(t *testing.T) {
	postgres := pgtest.Start(t)
	redis := redistest.Start(t)
	i := plusonetest.Start(t, build(t), "--redis-url="+redis.URL(), "--postgres-url="+postgres.URL, "--window="+outageWindow.String())
	l := startOutageLoad(t, i)

	wait(*warmFlag)
	l.reset()
	wait(min(*outageFlag/4, 30*time.Second))
	before := l.p99()
	postgres.Stop()
	l.reset()
	began := time.Now()
	wait(*outageFlag)
	during := l.p99()
	away := time.Since(began)
	postgres.Cont()
	began = time.Now()
	client := connectRedis(t, redis.URL())
	// A window cannot be drained before it has ended, so what is left of an outage are older ones.
	caughtUp := testproc.Poll(10*time.Minute, 10*time.Millisecond, func() bool {
		return !slices.ContainsFunc(oldestWindows(t, client), func(began time.Time) bool { return time.Since(began) > outageWindow })
	})
	if !caughtUp {
		t.Fatal("the backlog is not caught up with")
	}
	took := time.Since(began)
	l.stop()
	table.add(row{
		work: fmt.Sprintf("Postgres away for %v at %d increments a second over %d keys", away.Round(time.Second), outageRate, scaled(outageKeys)),
		ratios: fmt.Sprintf("caught up with after %v, at %.1f times real time",
			took.Round(10*time.Millisecond), away.Seconds()/took.Seconds()),
		latency: fmt.Sprintf("p99 of Increment %v before, %v meanwhile", before.Round(10*time.Microsecond), during.Round(10*time.Microsecond)),
		target:  "p99 unchanged; ≥ 5 times real time",
	})
}

// outageLoad is a steady load of batches, and single increments that are timed.
type outageLoad struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu   sync.Mutex
	took []time.Duration
}

func startOutageLoad(t *testing.T, i *plusonetest.Instance) *outageLoad {
	t.Helper()
	l := &outageLoad{}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	t.Cleanup(l.stop)
	c := plusonetest.Dial(t, []*plusonetest.Instance{i})
	keys := keyNames(scaled(outageKeys))
	send := func(every time.Duration, call func() error) {
		l.group.Go(func() {
			ticker := time.NewTicker(every)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				if err := call(); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	send(time.Second*outageBatch/outageRate, func() error {
		entries := make([]client.Entry, outageBatch)
		for e := range entries {
			entries[e] = client.Entry{Key: keys[rand.IntN(len(keys))], Delta: 1}
		}
		_, err := c.BatchIncrement(ctx, entries)
		return err
	})
	send(5*time.Millisecond, func() error {
		began := time.Now()
		_, err := c.Increment(ctx, keys[rand.IntN(len(keys))], 1)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.took = append(l.took, time.Since(began))
		return err
	})
	return l
}

func (l *outageLoad) stop() {
	l.cancel()
	l.group.Wait()
}

func (l *outageLoad) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = nil
}

func (l *outageLoad) p99() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) == 0 {
		return 0
	}
	slices.Sort(l.took)
	return l.took[len(l.took)*99/100]
}
