package server

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// A value is fetched again in the background when it is used at four fifths of its max_age or later and was
// used hotHits times since it was fetched. The last fifth is longer than a fetch takes, and fewer hits are
// not worth a fetch that nobody may need.
const hotHits = 10

// entryBytes is the memory of an entry besides its key and the key in its answer: the entry, what else is in its answer, its
// place, the map's node and slot.
const entryBytes = int64(unsafe.Sizeof(entry{})+unsafe.Sizeof(place{})) + 40 + 160

// freshness is what a read asks of its answer.
type freshness struct {
	// maxAge is how long before the request the fetch of the value may have begun. With 0 it must begin
	// after the request arrived.
	maxAge time.Duration
	// minAsOf is the moment by the store's clock that the value must not be older than, zero for none.
	minAsOf time.Time
}

// entry is the count of a key as it was fetched at one time, with the answer of all calls that it answers. What comes before the
// count is all that most reads look at, and fits in a line of the CPU's caches.
type entry struct {
	// began and ended are when the fetch did, by the cache's clock.
	began, ended time.Duration

	// hits counts up to hotHits and stops, so that a hot entry is only read.
	hits       atomic.Uint32
	refreshing atomic.Bool

	answer answer

	count counter.Count
}

// newEntry takes key from the request, and so does not depend on the store to repeat it.
func newEntry(key string, c counter.Count, began, ended time.Duration) (*entry, error) {
	c.Key = key
	e := &entry{count: c, began: began, ended: ended}
	if err := e.answer.encodeCount(&e.count, false); err != nil {
		return nil, err
	}
	return e, nil
}

// staleAnswer is the answer with the entry's count, marked stale.
func (e *entry) staleAnswer() (*answer, error) {
	a := &answer{}
	if err := a.encodeCount(&e.count, true); err != nil {
		return nil, err
	}
	return a, nil
}

// meets reports whether the entry may answer a request that arrived at the moment now and whose maxAge is
// not 0.
func (e *entry) meets(want freshness, now time.Duration) bool {
	return now-e.began <= want.maxAge && (want.minAsOf.IsZero() || !e.count.AsOf.Before(want.minAsOf))
}

// supersedes reports whether e is at least as new as old. The store's clock decides between fetches that
// overlapped, but it may go back (another Redis host takes over): a later fetch is newer all the same.
func (e *entry) supersedes(old *entry) bool {
	if e.began > old.ended {
		return true
	}
	if !e.count.AsOf.Equal(old.count.AsOf) {
		return e.count.AsOf.After(old.count.AsOf)
	}
	return e.began >= old.began
}

// hit counts a use of the entry and reports whether the caller shall refresh it: to one caller, once.
func (e *entry) hit(maxAge, now time.Duration) bool {
	if e.hits.Load() < hotHits {
		e.hits.Add(1)
		return false
	}
	return now-e.began >= maxAge-maxAge/5 && !e.refreshing.Load() && e.refreshing.CompareAndSwap(false, true)
}

// place is where the cache has the entry of a key. A newer entry replaces the one that is there, which costs the cache
// nothing, as a key always weighs the same.
type place struct{ latest atomic.Pointer[entry] }

// put keeps an entry unless a newer one is there.
func (p *place) put(e *entry) {
	for {
		old := p.latest.Load()
		if old != nil && !e.supersedes(old) || p.latest.CompareAndSwap(old, e) {
			return
		}
	}
}

// countCache keeps the last known count of keys, bounded by memory alone, and fetches counts from the
// store. All methods may be called concurrently.
type countCache struct {
	store   Store
	timeout time.Duration
	metrics *metrics
	log     *callLog
	start   time.Time

	deadlines *deadline.Timers

	entries *otter.Cache[string, *place]

	// ctx ends when the cache is closed, and with it all loads.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	// flights are the youngest loads of keys that are being fetched. Their number is bounded by maxLoads.
	flights map[string]flight
	// waiting are the loads of one key that have not begun (obtainNext). Each has a caller who waits for it.
	waiting   map[string]*load
	maxLoads  int
	loads     int
	refreshes int
	closed    bool
}

// newCountCache makes a cache of about maxBytes. Each load may take timeout, and at most maxLoads run at
// once.
func newCountCache(store Store, maxBytes int64, timeout time.Duration, maxLoads int, m *metrics, log *callLog, deadlines *deadline.Timers,
) (*countCache, error) {
	entries, err := otter.New(&otter.Options[string, *place]{
		MaximumWeight: uint64(maxBytes),
		Weigher: func(key string, _ *place) uint32 {
			return uint32(min(2*int64(len(key))+entryBytes, math.MaxUint32))
		},
		StatsRecorder: evictions{m},
		Logger:        &otter.NoopLogger{},
	})
	if err != nil {
		return nil, err
	}
	c := &countCache{
		store: store, timeout: timeout, metrics: m, log: log, start: time.Now(), deadlines: deadlines,
		entries: entries, flights: make(map[string]flight), waiting: make(map[string]*load), maxLoads: maxLoads,
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// now is the cache's clock: monotonic, and only good for differences.
func (c *countCache) now() time.Duration { return time.Since(c.start) }

// lookup returns the entry of a key if it may answer a request that arrived at the moment now, else nil.
func (c *countCache) lookup(key string, want freshness, now time.Duration) *entry {
	if want.maxAge == 0 {
		return nil
	}
	if e := c.lastKnown(key); e != nil && e.meets(want, now) {
		return e
	}
	return nil
}

// lastKnown returns the entry of a key however old it is, else nil.
func (c *countCache) lastKnown(key string) *entry {
	if p, ok := c.entries.GetIfPresent(key); ok {
		return p.latest.Load()
	}
	return nil
}

// put keeps an entry unless a newer one is there. One that is put while the cache drops its key may go with it.
func (c *countCache) put(e *entry) {
	p, ok := c.entries.GetIfPresent(e.count.Key)
	if !ok {
		fresh := &place{}
		fresh.put(e)
		if p, ok = c.entries.SetIfAbsent(e.count.Key, fresh); ok {
			return
		}
	}
	p.put(e)
}

// keep keeps a count that others than the cache have read, after the moment sent. Many callers may have the same one.
func (c *countCache) keep(count *counter.Count, sent time.Time) {
	began := sent.Sub(c.start)
	if e := c.lastKnown(count.Key); e == nil || e.began != began || !e.count.AsOf.Equal(count.AsOf) {
		e, err := newEntry(count.Key, *count, began, c.now())
		if err != nil {
			c.log.loadFailed(err)
			return
		}
		c.put(e)
	}
}

// close ends all loads and waits for them until ctx ends.
func (c *countCache) close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	done := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// evictions passes on the evictions that otter records, and nothing else.
type evictions struct{ metrics *metrics }

var _ stats.Recorder = evictions{}

func (e evictions) RecordEviction(uint32)         { e.metrics.evictions.Inc() }
func (evictions) RecordHits(int)                  {}
func (evictions) RecordMisses(int)                {}
func (evictions) RecordLoadSuccess(time.Duration) {}
func (evictions) RecordLoadFailure(time.Duration) {}
