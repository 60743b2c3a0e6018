package groupcommit_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/plusone-dev/plusone/internal/groupcommit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder runs batches that each take as long as the test says.
type recorder struct {
	gate    chan struct{}
	batches [][]int
}

func (r *recorder) run(_ context.Context, batch []int) {
	<-r.gate
	r.batches = append(r.batches, slices.Clone(batch))
}

func add(t *testing.T, q *groupcommit.Queue[int], items ...int) {
	t.Helper()
	for _, item := range items {
		if err := q.Add(item); err != nil {
			t.Fatalf("Add(%d): %v", item, err)
		}
	}
}

func mustClose(t *testing.T, q *groupcommit.Queue[int]) {
	t.Helper()
	if err := q.Close(context.Background()); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func TestItemsThatArriveDuringABatchFormTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{gate: make(chan struct{})}
		q := groupcommit.New(groupcommit.Config[int]{MaxQueue: 10, MaxBatch: 3}, r.run)
		add(t, q, 1)
		synctest.Wait() // the first batch is under way
		add(t, q, 2, 3, 4, 5)
		close(r.gate)
		synctest.Wait()
		add(t, q, 6) // the queue went idle and wakes again
		mustClose(t, q)
		want := [][]int{{1}, {2, 3, 4}, {5}, {6}}
		if !slices.EqualFunc(r.batches, want, slices.Equal) {
			t.Errorf("batches %v, want %v", r.batches, want)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{gate: make(chan struct{})}
		q := groupcommit.New(groupcommit.Config[int]{MaxQueue: 2, MaxBatch: 10}, r.run)
		add(t, q, 1)
		synctest.Wait()
		add(t, q, 2, 3)
		if err := q.Add(4); !errors.Is(err, groupcommit.ErrFull) {
			t.Errorf("Add to a full queue: %v, want ErrFull", err)
		}
		close(r.gate)
		synctest.Wait()
		add(t, q, 5)
		mustClose(t, q)
	})
}

func TestWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{gate: make(chan struct{})}
		cfg := groupcommit.Config[int]{MaxQueue: 8, MaxBatch: 5, Weigh: func(i int) int { return i }}
		q := groupcommit.New(cfg, r.run)
		add(t, q, 9) // heavier than everything, but alone
		synctest.Wait()
		add(t, q, 2, 3, 1)
		if err := q.Add(3); !errors.Is(err, groupcommit.ErrFull) {
			t.Errorf("Add beyond MaxQueue: %v, want ErrFull", err)
		}
		add(t, q, 2)
		close(r.gate)
		mustClose(t, q)
		want := [][]int{{9}, {2, 3}, {1, 2}}
		if !slices.EqualFunc(r.batches, want, slices.Equal) {
			t.Errorf("batches %v, want %v", r.batches, want)
		}
	})
}

func TestCloseDrainsAndRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{gate: make(chan struct{})}
		q := groupcommit.New(groupcommit.Config[int]{MaxQueue: 10, MaxBatch: 1}, r.run)
		add(t, q, 1, 2, 3)
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() {
				if err := q.Close(context.Background()); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		synctest.Wait()
		if err := q.Add(4); !errors.Is(err, groupcommit.ErrClosed) {
			t.Errorf("Add after Close: %v, want ErrClosed", err)
		}
		close(r.gate)
		closers.Wait()
		mustClose(t, q)
		if want := [][]int{{1}, {2}, {3}}; !slices.EqualFunc(r.batches, want, slices.Equal) {
			t.Errorf("batches %v, want %v", r.batches, want)
		}
	})
}

func TestCloseCancelsWhenItsTimeIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled []int
		q := groupcommit.New(groupcommit.Config[int]{MaxQueue: 10, MaxBatch: 1}, func(ctx context.Context, batch []int) {
			<-ctx.Done()
			settled = append(settled, batch...)
		})
		add(t, q, 1, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want DeadlineExceeded", err)
		}
		if want := []int{1, 2}; !slices.Equal(settled, want) {
			t.Errorf("settled %v, want %v", settled, want)
		}
	})
}

func TestConcurrentAddsKeepEveryItemOnce(t *testing.T) {
	const adders, each = 8, 2000
	seen := make(map[int]int)
	q := groupcommit.New(groupcommit.Config[int]{MaxQueue: adders * each, MaxBatch: 64}, func(_ context.Context, batch []int) {
		if len(batch) > 64 {
			t.Errorf("batch of %d", len(batch))
		}
		for _, item := range batch {
			seen[item]++
		}
	})
	var group sync.WaitGroup
	for a := range adders {
		group.Go(func() {
			for i := range each {
				if err := q.Add(a*each + i); err != nil {
					t.Errorf("Add: %v", err)
				}
			}
		})
	}
	group.Wait()
	mustClose(t, q)
	if len(seen) != adders*each {
		t.Errorf("%d items, want %d", len(seen), adders*each)
	}
	for item, n := range seen {
		if n != 1 {
			t.Errorf("item %d ran %d times", item, n)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	q := groupcommit.New(groupcommit.Config[*int]{MaxQueue: 1 << 30, MaxBatch: 1000}, func(context.Context, []*int) {})
	item := new(int)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := q.Add(item); err != nil {
				b.Error(err)
			}
		}
	})
	if err := q.Close(context.Background()); err != nil {
		b.Error(err)
	}
}

// TestABusyQueueLetsItemsGather: batches wait while much comes, for no longer than they may, and not any more when it
// has become quiet.
func TestABusyQueueLetsItemsGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wait, enough = 4 * time.Millisecond, 40
		var mu sync.Mutex // of what follows
		var sizes []int
		var took time.Duration
		q := groupcommit.New(groupcommit.Config[int]{
			MaxQueue: 1000, MaxBatch: 1000, Gather: groupcommit.Gather{Enough: enough, Wait: wait},
		}, func(_ context.Context, batch []int) {
			mu.Lock()
			sizes = append(sizes, len(batch))
			lasts := time.After(took)
			mu.Unlock()
			<-lasts
		})
		// stream adds an item every so often for a while, and returns the sizes of the last batches.
		stream := func(every, batch, lasting time.Duration) []int {
			mu.Lock()
			sizes, took = nil, batch
			mu.Unlock()
			for began := time.Now(); time.Since(began) < lasting; {
				add(t, q, 1)
				<-time.After(every)
			}
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(sizes[len(sizes)/2:])
		}
		for _, c := range []struct {
			name              string
			every, took       time.Duration
			smallest, largest int
		}{
			{"quiet", 500 * time.Microsecond, time.Millisecond, 1, 3}, // a fifth of what is busy
			{"busy, for about twice a batch", 200 * time.Microsecond, time.Millisecond, 12, 15},
			{"busy, until there is enough", 50 * time.Microsecond, 3 * time.Millisecond, enough, 62},
			{"busy, for no longer than it may", 300 * time.Microsecond, 3 * time.Millisecond, 22, 25},
			{"quiet again", 500 * time.Microsecond, time.Millisecond, 1, 3},
		} {
			got := stream(c.every, c.took, 200*time.Millisecond)
			if slices.Min(got) < c.smallest || slices.Max(got) > c.largest {
				t.Errorf("%s: batches of %v, want %d to %d", c.name, got, c.smallest, c.largest)
			}
		}
		add(t, q, 1)
		mustClose(t, q)
	})
}

// TestABatchWaitsForThoseWhoComeBack: callers who wait for an answer each share batches, however few they are beside what is
// enough, and wait for no longer than that needs, though some of them take long.
func TestABatchWaitsForThoseWhoComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers, lasting = 20, 200 * time.Millisecond
		var batches atomic.Int64
		q := groupcommit.New(groupcommit.Config[chan struct{}]{
			MaxQueue: 1000, MaxBatch: 1000, Gather: groupcommit.Gather{Enough: 2 * callers, Wait: 4 * time.Millisecond},
		}, func(_ context.Context, batch []chan struct{}) {
			<-time.After(time.Millisecond)
			batches.Add(1)
			for _, done := range batch {
				close(done)
			}
		})
		for _, c := range []struct {
			slow int // callers who are away for 20 ms between two items, the others for half of one at most
			// Answers to the others, and batches. Without a wait there is one batch in each of the 200 ms, with 10 answers if
			// nobody is slow; a wait for all that are enough lasts for 4 ms each time.
			fewest, most int64
		}{{0, 2200, 170}, {4, 1750, 170}, {8, 1100, 170}} {
			began, before := time.Now(), batches.Load()
			var answers atomic.Int64
			var group sync.WaitGroup
			for i := range callers {
				away := time.Duration(i%5+1) * 100 * time.Microsecond
				if i < c.slow {
					away = 20 * time.Millisecond
				}
				group.Go(func() {
					for time.Since(began) < lasting {
						done := make(chan struct{})
						if err := q.Add(done); err != nil {
							t.Error(err)
							return
						}
						<-done
						if i >= c.slow {
							answers.Add(1)
						}
						<-time.After(away)
					}
				})
			}
			group.Wait()
			if a, b := answers.Load(), batches.Load()-before; a < c.fewest || b > c.most {
				t.Errorf("%d slow callers: %d answers by %d batches, want %d or more by %d or fewer", c.slow, a, b, c.fewest, c.most)
			}
		}
		if err := q.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// What gathers is run at once when the queue is closed, and when somebody waits for it.
func TestTheWaitIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wait, lasts = time.Second, time.Second / 2
		var running atomic.Bool
		var size, ran atomic.Int64
		added := int64(0)
		q := groupcommit.New(groupcommit.Config[int]{
			MaxQueue: 100_000, MaxBatch: 100_000, Gather: groupcommit.Gather{Enough: 1000, Wait: wait},
		}, func(_ context.Context, batch []int) {
			running.Store(true)
			size.Store(int64(len(batch)))
			ran.Add(int64(len(batch)))
			<-time.After(lasts)
			running.Store(false)
		})
		// gather adds items until a large batch runs, then one more, and returns when that batch has ended and the item waits.
		gather := func() {
			t.Helper()
			for began := time.Now(); !running.Load() || size.Load() < 100 || time.Since(began) < 20*wait; added++ {
				add(t, q, 1)
				<-time.After(wait / 500)
				synctest.Wait()
			}
			add(t, q, 1)
			added++
			<-time.After(lasts)
			synctest.Wait()
			if running.Load() || ran.Load() == added {
				t.Error("no item waits for others")
			}
		}
		gather()
		began := time.Now()
		q.Flush(t.Context())
		if took := time.Since(began); ran.Load() != added || took != lasts {
			t.Errorf("%d of %d items ran, in %v", ran.Load(), added, took)
		}
		gather()
		closing := time.Now()
		mustClose(t, q)
		if took := time.Since(closing); ran.Load() != added || took > lasts {
			t.Errorf("%d of %d items ran, in %v", ran.Load(), added, took)
		}
	})
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{gate: make(chan struct{})}
		q := groupcommit.New(groupcommit.Config[int]{MaxQueue: 4, MaxBatch: 3}, r.run)
		add(t, q, 1)
		synctest.Wait() // the first batch is under way
		add(t, q, 2, 3, 4)
		if got, want := q.Stats(), (groupcommit.Stats{Waiting: 3, Fill: .75}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		add(t, q, 5)
		if err := q.Add(6); !errors.Is(err, groupcommit.ErrFull) {
			t.Errorf("a full queue: %v", err)
		}
		if got, want := q.Stats(), (groupcommit.Stats{Waiting: 4, Fill: 1, Refused: 1}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		close(r.gate)
		mustClose(t, q)
		if got, want := q.Stats(), (groupcommit.Stats{Refused: 1}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// TestYield: what is ready to be added when an idle queue gets its first item goes with it.
func TestYield(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that it is known who runs when
	const rounds, each = 50, 5
	batches := 0
	ran := make(chan int, each)
	q := groupcommit.New(groupcommit.Config[int]{MaxQueue: each, MaxBatch: each, Yield: true}, func(_ context.Context, batch []int) {
		batches++
		ran <- len(batch)
	})
	for range rounds {
		for i := range each {
			go func() {
				if err := q.Add(i); err != nil {
					t.Error(err)
				}
			}()
		}
		for left := each; left > 0; {
			left -= <-ran
		}
	}
	mustClose(t, q)
	// Now and then the scheduler is fair.
	if batches > rounds*3/2 {
		t.Errorf("%d batches for %d times %d items", batches, rounds, each)
	}
}
