package server

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// clockStore reads every key as the number of the read, at the time of the bubble, after latency.
type clockStore struct {
	latency time.Duration
	err     atomic.Pointer[error]
	reads   atomic.Int64
	keys    atomic.Int64
}

func (s *clockStore) Apply(context.Context, counter.Change) (counter.Receipt, error) {
	return counter.Receipt{Outcome: counter.Applied, AsOf: time.Now()}, nil
}

func (s *clockStore) Counts(ctx context.Context, keys []string) []counter.Reading {
	n := s.reads.Add(1)
	s.keys.Add(int64(len(keys)))
	asOf := time.Now()
	if s.latency > 0 {
		if err := sleep(ctx, s.latency); err != nil {
			return failAll(keys, err)
		}
	}
	if err := s.err.Load(); err != nil {
		return failAll(keys, *err)
	}
	return readAll(keys, func(string) int64 { return n }, asOf)
}

func (s *clockStore) Likes(context.Context, string, []string) ([]counter.LikeState, error) {
	return nil, counter.ErrUnavailable
}

func (s *clockStore) fail(err error) { s.err.Store(&err) }

func get(t *testing.T, s *counterService, req *plusonev1.GetRequest) *plusonev1.Count {
	t.Helper()
	resp, err := getMessage(t.Context(), s, req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Count
}

func wantCount(t *testing.T, c *plusonev1.Count, count int64, stale bool) {
	t.Helper()
	if c.Count != count || c.Stale != stale {
		t.Errorf("got count %d, stale %v, want %d, %v", c.Count, c.Stale, count, stale)
	}
}

func TestMaxAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, &clockStore{latency: time.Second}, Config{})
		plain := &plusonev1.GetRequest{Key: "k"}
		wantCount(t, get(t, s, plain), 1, false)
		time.Sleep(4 * time.Second) // the fetch began 5 s ago
		wantCount(t, get(t, s, plain), 1, false)
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(5*time.Second - 1)}), 2, false)
		time.Sleep(4*time.Second + 1)
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(time.Hour)}), 2, false)
		wantCount(t, get(t, s, plain), 3, false)
		// 0 always asks the store, even at the very moment of the last fetch.
		now := &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(0)}
		wantCount(t, get(t, s, now), 4, false)
		wantCount(t, get(t, s, now), 5, false)
		wantCount(t, get(t, s, plain), 5, false)
	})
}

func TestMaxAgeZeroAtTheSameInstant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		now := &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(0)}
		wantCount(t, get(t, s, now), 1, false)
		wantCount(t, get(t, s, now), 2, false)
	})
}

// Fresh loads of a key that are asked for while one is under way are one: it begins when that ends, or soon if that hangs.
func TestFreshReadsShareTheNextLoad(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ latency, after time.Duration }{
		"healthy": {latency: 10 * time.Millisecond, after: 15 * time.Millisecond},
		"slow":    {latency: time.Second, after: maxLoadShare + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := &clockStore{latency: tc.latency}
				s := newService(t, store, Config{})
				var wg sync.WaitGroup
				read := func(want int64, after time.Duration) {
					wg.Go(func() {
						began := time.Now()
						r := s.cache.obtain(t.Context(), []string{"k"}, freshness{})[0]
						if r.err != nil {
							t.Error(r.err)
							return
						}
						if c := r.entry.count; c.Value != want || c.AsOf.Before(began) {
							t.Errorf("got %d, want %d, as of %v before the call", c.Value, want, began.Sub(c.AsOf))
						}
						if took := time.Since(began); took != after {
							t.Errorf("read %d took %v, want %v", want, took, after)
						}
					})
				}
				read(1, tc.latency)
				synctest.Wait()
				time.Sleep(5 * time.Millisecond)
				for range 5 {
					read(2, tc.after)
				}
				wg.Wait()
				if loads, waiting := len(s.cache.flights), len(s.cache.waiting); loads+waiting != 0 {
					t.Errorf("%d loads and %d that wait are left over", loads, waiting)
				}
			})
		})
	}
}

// A refresh that fails is not tried again and again: the value is fetched when it is too old.
func TestFailedRefreshIsNotRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		for range hotHits + 1 {
			get(t, s, &plusonev1.GetRequest{Key: "k"})
		}
		store.fail(counter.ErrUnavailable)
		time.Sleep(4500 * time.Millisecond)
		for range 10 {
			wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, false)
			synctest.Wait()
		}
		if n := store.reads.Load(); n != 2 {
			t.Errorf("%d reads", n)
		}
	})
}

func TestConcurrentMissesAreOneLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{latency: time.Second}
		s := newService(t, store, Config{})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, false) })
		}
		synctest.Wait()
		wg.Go(func() { // joins the load of k and makes one of its own
			resp, err := batchGetMessage(t.Context(), s, &plusonev1.BatchGetRequest{Keys: []string{"k", "l", "m", "l"}})
			if err != nil || len(resp.Counts) != 4 {
				t.Errorf("got %v, %v", resp, err)
			}
		})
		wg.Wait()
		if reads, keys := store.reads.Load(), store.keys.Load(); reads != 2 || keys != 3 {
			t.Errorf("%d reads of %d keys", reads, keys)
		}
	})
}

func TestFreshReadDoesNotJoinOlderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{latency: time.Second}
		s := newService(t, store, Config{})
		go func() { _, _ = getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "k"}) }()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(0)}), 2, false)

		go func() { _, _ = getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "l"}) }()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "l", MaxAge: durationpb.New(99 * time.Millisecond)}), 4, false)
		go func() { _, _ = getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "m"}) }()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "m", MaxAge: durationpb.New(100 * time.Millisecond)}), 5, false)
	})
}

// One caller's haste is not another's failure.
func TestSharedLoadOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{latency: time.Second}
		s := newService(t, store, Config{})
		hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := getMessage(hasty, s, &plusonev1.GetRequest{Key: "k"})
			wantFailure(t, err, failure{code: codes.Unavailable, reason: "STORE_UNAVAILABLE", retry: true})
			if took := time.Since(began); took != 90*time.Millisecond {
				t.Errorf("answered after %v", took)
			}
		})
		synctest.Wait()
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, false)
		wg.Wait()
		if n := store.reads.Load(); n != 1 {
			t.Errorf("%d reads", n)
		}
	})
}

func TestRefreshAheadOfHotKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{latency: 100 * time.Millisecond}
		s := newService(t, store, Config{})
		hot, cold := &plusonev1.GetRequest{Key: "hot"}, &plusonev1.GetRequest{Key: "cold"}
		get(t, s, hot)
		get(t, s, cold)
		for range hotHits {
			get(t, s, hot)
		}
		time.Sleep(3700 * time.Millisecond) // hot is 3.9 s old
		get(t, s, hot)
		synctest.Wait()
		if n := store.reads.Load(); n != 2 {
			t.Fatalf("refreshed too early: %d reads", n)
		}
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		for range 50 {
			wantCount(t, get(t, s, hot), 1, false) // nobody waits
			get(t, s, cold)
		}
		if time.Since(began) != 0 {
			t.Error("a hit waited")
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		wantCount(t, get(t, s, hot), 3, false)
		time.Sleep(4900 * time.Millisecond)
		wantCount(t, get(t, s, hot), 3, false) // by the time its own fetch began
		if n := store.reads.Load(); n != 3 {
			t.Errorf("%d reads", n)
		}
		if n := value(t, s.metrics.refreshes); n != 1 {
			t.Errorf("%v refreshes", n)
		}
	})
}

func TestBatchRefreshIsOneLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		req := &plusonev1.BatchGetRequest{}
		for i := range 500 {
			req.Keys = append(req.Keys, fmt.Sprint("k", i))
		}
		for range hotHits + 1 {
			if _, err := batchGetMessage(t.Context(), s, req); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(4500 * time.Millisecond)
		if _, err := batchGetMessage(t.Context(), s, req); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if reads, keys := store.reads.Load(), store.keys.Load(); reads != 2 || keys != 1000 {
			t.Errorf("%d reads of %d keys", reads, keys)
		}
	})
}

func TestRefreshesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{latency: 100 * time.Millisecond}
		s := newService(t, store, Config{})
		const keys = maxRefreshes + 20
		visit := func() {
			for i := range keys {
				get(t, s, &plusonev1.GetRequest{Key: fmt.Sprint(i), MaxAge: durationpb.New(time.Hour)})
			}
		}
		for range hotHits + 1 {
			visit()
		}
		time.Sleep(50 * time.Minute)
		visit()
		synctest.Wait()
		if n := store.reads.Load(); n != keys+maxRefreshes {
			t.Errorf("%d refreshes at once", n-keys)
		}
		time.Sleep(time.Second)
		visit() // those that were put off have their turn
		synctest.Wait()
		if n := store.reads.Load(); n != 2*keys {
			t.Errorf("%d refreshes in the end", n-keys)
		}
	})
}

func TestOlderValueDoesNotReplaceNewer(t *testing.T) {
	t.Parallel()
	at := func(began, ended time.Duration, asOf int) *entry {
		return entryOf(t, "k", counter.Count{Value: int64(asOf), AsOf: storeTime.Add(time.Duration(asOf))}, began, ended)
	}
	for name, tc := range map[string]struct {
		old, next *entry
		want      bool
	}{
		"later by both":                 {at(1, 2, 10), at(3, 4, 11), true},
		"overlapping, store says later": {at(2, 3, 10), at(1, 4, 11), true},
		"overlapping, store says older": {at(1, 4, 11), at(2, 3, 10), false},
		"slow and older":                {at(3, 4, 11), at(1, 9, 10), false},
		"the store's clock went back":   {at(1, 2, 10), at(3, 4, 5), true},
		"same moment, began later":      {at(1, 4, 10), at(2, 4, 10), true},
		"same moment, began earlier":    {at(2, 4, 10), at(1, 4, 10), false},
	} {
		s := newService(t, &scriptedStore{}, Config{})
		s.cache.put(tc.old)
		s.cache.put(tc.next)
		if got := s.cache.lastKnown("k") == tc.next; got != tc.want {
			t.Errorf("%s: replaced is %v", name, got)
		}
	}
}

// The weights must not be far from the truth, or the bound is none.
func TestCacheIsBoundedByMemory(t *testing.T) {
	const limit = 8 << 20
	s := newService(t, &scriptedStore{}, Config{CacheBytes: limit})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 100_000 {
		s.cache.put(entryOf(t, fmt.Sprintf("views/post:%012d", i), counter.Count{AsOf: storeTime}, 0, 0))
	}
	s.cache.entries.CleanUp()
	used := int64(heap()) - int64(before)
	weight, size := s.cache.entries.WeightedSize(), s.cache.entries.EstimatedSize()
	t.Logf("%d entries, weight %d, heap %d, %d a piece", size, weight, used, used/int64(size))
	if weight > limit || used > limit*5/4 {
		t.Errorf("weight %d, heap %d", weight, used)
	}
	if size < 10_000 || value(t, s.metrics.evictions) == 0 {
		t.Errorf("%d entries, %v evictions", size, value(t, s.metrics.evictions))
	}
	runtime.KeepAlive(s)
}

func TestLoadsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, &clockStore{latency: time.Second}, Config{MaxInFlight: 3})
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { get(t, s, &plusonev1.GetRequest{Key: fmt.Sprint(i)}) })
		}
		synctest.Wait()
		_, err := getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "more"})
		wantFailure(t, err, failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true})
		wg.Wait()
		get(t, s, &plusonev1.GetRequest{Key: "more"})
		if n := len(s.cache.flights); n != 0 {
			t.Errorf("%d flights are left over", n)
		}
	})
}

func TestBrokenStoreFailsOnlyTheLoad(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	s := newService(t, store, Config{})
	store.counts = func(context.Context, []string) []counter.Reading { panic("broken") }
	_, err := getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "k"})
	wantFailure(t, err, failure{code: codes.Internal, reason: "INTERNAL"})
	store.counts = func(context.Context, []string) []counter.Reading { return nil }
	_, err = getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "k"})
	wantFailure(t, err, failure{code: codes.Internal, reason: "INTERNAL"})
	store.counts = nil
	wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, false)
}

// Readers, refreshes, evictions and an unsteady store at once: answers belong to their keys, and the count
// of a key never goes back for a reader that asks for fresh reads.
func TestCacheUnderConcurrency(t *testing.T) {
	t.Parallel()
	var clock, calls atomic.Int64
	store := &scriptedStore{}
	store.counts = func(_ context.Context, keys []string) []counter.Reading {
		now := clock.Add(1)
		if calls.Add(1)%7 == 0 {
			return failAll(keys, counter.ErrUnavailable)
		}
		return readAll(keys, func(string) int64 { return now }, storeTime.Add(time.Duration(now)))
	}
	s := newService(t, store, Config{CacheBytes: 64 << 10})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			last := map[string]int64{}
			for i := range 500 {
				key := fmt.Sprint("k", (g*i)%300)
				maxAge := durationpb.New(time.Duration(i%3) * time.Millisecond)
				c, err := getMessage(t.Context(), s, &plusonev1.GetRequest{Key: key, MaxAge: maxAge})
				if err != nil {
					if f := failureOf(t, err); f.code != codes.Unavailable {
						t.Errorf("%v", err)
					}
					continue
				}
				if c.Count.Key != key || c.Count.Count < last[key] && !c.Count.Stale && i%3 == 0 {
					t.Errorf("asked %s, got %v after %d", key, c.Count, last[key])
				}
				last[key] = c.Count.Count
				_, _ = batchGetMessage(t.Context(), s, &plusonev1.BatchGetRequest{Keys: []string{key, "k1", "k2"}, MaxAge: maxAge})
			}
		})
	}
	wg.Wait()
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	for key := range s.cache.flights {
		if s.cache.loads == 0 {
			t.Errorf("flight of %s is left over", key)
		}
	}
}

func BenchmarkGetHit(b *testing.B) {
	s := newService(b, &scriptedStore{}, Config{})
	req := &plusonev1.GetRequest{Key: "views/post:1234567", MaxAge: durationpb.New(time.Hour)}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.get(context.Background(), req); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkGetMiss(b *testing.B) {
	s := newService(b, &clockStore{}, Config{})
	req := &plusonev1.GetRequest{Key: "views/post:1234567", MaxAge: durationpb.New(0)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.get(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBatchGetHits(b *testing.B) {
	s := newService(b, &scriptedStore{}, Config{})
	req := &plusonev1.BatchGetRequest{MaxAge: durationpb.New(time.Hour)}
	for i := range counter.MaxReadKeys {
		req.Keys = append(req.Keys, fmt.Sprint("views/post:", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.batchGet(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}
