package bench_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

const (
	// waiters are callers that each wait until their increment is counted.
	waiters = 20_000
	// offered is how many increments a second come in without waiting.
	offered       = 2_000_000
	coalescedKeys = 1000
)

// coalescer makes one on a client of plusone.
func (s sharded) coalescer(t *testing.T) *client.Coalescer {
	t.Helper()
	o, err := plusonetest.DialAddrs(t, []string{s.plusone.addr}).NewCoalescer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.Background()) })
	return o
}

// TestCoalescer measures a process that counts by a Coalescer. What it counted must be exact.
func TestCoalescer(t *testing.T) {
	s := startSharded(t)
	coalesceWaiting(t, s)
	coalesceOffered(t, s)
}

func coalesceWaiting(t *testing.T, s sharded) {
	t.Helper()
	keys := keyNames(coalescedKeys)
	var rates []float64
	for range *runsFlag {
		o := s.coalescer(t)
		var counted atomic.Int64
		var measuring, stopped atomic.Bool
		var group sync.WaitGroup
		for i := range scaled(waiters) {
			group.Go(func() {
				for n := i; !stopped.Load(); n++ {
					if err := o.AddAndWait(context.Background(), keys[n%len(keys)], 1); err != nil {
						t.Error(err)
						return
					}
					if measuring.Load() {
						counted.Add(1)
					}
				}
			})
		}
		wait(*warmFlag)
		began := time.Now()
		measuring.Store(true)
		wait(*secondsFlag)
		measuring.Store(false)
		rates = append(rates, float64(counted.Load())/time.Since(began).Seconds())
		stopped.Store(true)
		group.Wait()
	}
	table.add(row{
		work: fmt.Sprintf("Coalescer, %d callers that wait, %d keys", scaled(waiters), coalescedKeys), target: "≥ 1,000,000 a second",
		throughput: spread(rates, "%.0f"),
	})
}

// coalesceOffered offers increments at a steady rate, and counts the CPU time of this process, plusone and Redis.
func coalesceOffered(t *testing.T, s sharded) {
	t.Helper()
	keys := keyNames(coalescedKeys)
	var rates, cores []float64
	for range *runsFlag {
		o := s.coalescer(t)
		used := func() time.Duration {
			return cpuTime(t, s.plusone.pid) + cpuTime(t, s.plusone.store) + ticks(os.Getpid())
		}
		before, began := used(), time.Now()
		added := offer(t, o, keys, began.Add(*secondsFlag))
		if err := o.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		elapsed := time.Since(began).Seconds()
		rates = append(rates, float64(added)/elapsed)
		cores = append(cores, (used()-before).Seconds()/elapsed)
		if got := o.Stats(); got != (client.CoalescerStats{Counted: added}) {
			t.Errorf("%d were added, and the coalescer tells of %+v", added, got)
		}
	}
	table.add(row{
		work: fmt.Sprintf("Coalescer, %d a second offered, no waiting, %d keys", offered, coalescedKeys), target: "≤ 1 core, nothing lost",
		throughput: spread(rates, "%.0f"), ratios: "cores of client, plusone and Redis " + spread(cores, "%.2f"),
	})
}

// offer adds at the rate from two goroutines, in bursts of a millisecond, and returns how many it added.
func offer(t *testing.T, o *client.Coalescer, keys []string, end time.Time) int64 {
	t.Helper()
	var added atomic.Int64
	var group sync.WaitGroup
	const adders = 2
	for a := range adders {
		group.Go(func() {
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			began, n := time.Now(), 0
			for now := range ticker.C {
				if now.After(end) {
					break
				}
				for due := int(now.Sub(began).Seconds() * offered / adders); n < due; n++ {
					if err := o.Add(context.Background(), keys[(a+n)%len(keys)], 1); err != nil {
						t.Error(err)
						return
					}
				}
			}
			added.Add(int64(n))
		})
	}
	group.Wait()
	return added.Load()
}
