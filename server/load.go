package server

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// maxRefreshes bounds the loads that run ahead of need. Keys that are not refreshed then are fetched when
// somebody misses them.
const maxRefreshes = 64

// maxLoadShare is how long those who need a load that has not begun wait for the one of their key that is under way, and
// so share what comes next. It is longer than a healthy load takes; a load that hangs holds nobody back for longer.
const maxLoadShare = 50 * time.Millisecond

// load is one call of the store. All who need its keys wait for it, and it has a deadline of its own, so
// that one caller's haste is not another's failure.
type load struct {
	began time.Duration
	keys  []string
	// done is closed when results, in the order of keys, may be read.
	done    chan struct{}
	results []result

	// Of a load that waits to begin (obtainNext): whether it has been launched, and what launches it when the load
	// before it takes long. Guarded by mu.
	launched bool
	patience *time.Timer
}

// result is what a read gets for one key: an entry, or the error that stands in its place.
type result struct {
	entry *entry
	stale bool // the entry is the last known value, and not as fresh as was wanted
	err   error
}

// answer is what a call gets for the key.
func (r *result) answer() (*answer, error) {
	switch {
	case r.err != nil:
		return nil, r.err
	case r.stale:
		return r.entry.staleAnswer()
	}
	return &r.entry.answer, nil
}

// flight is the place of a key in a load.
type flight struct {
	load  *load
	index int
}

// obtain returns fresh enough entries for distinct keys, in their order, or errors, which include that of
// ctx. It joins loads that began no longer ago than want.maxAge and starts at most one. If a minAsOf is asked
// for it joins none, as one that began before the request is likely to be too old.
//
// The entries of a load that was started meet maxAge, but their asOf may be before minAsOf.
func (c *countCache) obtain(ctx context.Context, keys []string, want freshness) []result {
	if want.maxAge == 0 && len(keys) == 1 {
		return []result{c.obtainNext(ctx, keys[0])}
	}
	results := make([]result, len(keys))
	flights := make([]flight, len(keys))
	now := c.now()
	var own *load

	c.mu.Lock()
	refusal := c.refusal()
	for i, key := range keys {
		if f, ok := c.flights[key]; ok && want.maxAge > 0 && now-f.load.began <= want.maxAge && want.minAsOf.IsZero() {
			flights[i] = f
			continue
		}
		// A load may have ended since the caller looked.
		if e := c.lookup(key, want, now); e != nil {
			results[i].entry = e
			continue
		}
		if refusal != nil {
			results[i].err = refusal
			continue
		}
		if own == nil {
			own = &load{began: now, done: make(chan struct{})}
		}
		flights[i] = c.enlist(own, key)
	}
	if own != nil {
		c.launch(own, false)
	}
	c.mu.Unlock()

	for i, f := range flights {
		if f.load == nil {
			continue
		}
		if results[i].err = deadline.Wait(ctx, f.load.done); results[i].err == nil {
			results[i] = f.load.results[f.index]
		}
	}
	return results
}

// obtainNext returns the entry of a load of the key that begins after the call. All who ask before it has begun
// share it: at most one load of a key is waiting to begin, and it waits while another is under way.
func (c *countCache) obtainNext(ctx context.Context, key string) result {
	c.mu.Lock()
	l := c.waiting[key]
	if l == nil {
		if err := c.refusal(); err != nil {
			c.mu.Unlock()
			return result{err: err}
		}
		l = &load{keys: []string{key}, done: make(chan struct{})}
		c.waiting[key] = l
		if _, ok := c.flights[key]; ok {
			l.patience = time.AfterFunc(maxLoadShare, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.launchWaiting(l)
			})
		} else {
			c.launchWaiting(l)
		}
	}
	c.mu.Unlock()
	if err := deadline.Wait(ctx, l.done); err != nil {
		return result{err: err}
	}
	return l.results[0]
}

// launchWaiting launches a load that is waiting to begin, once. The caller holds mu.
func (c *countCache) launchWaiting(l *load) {
	if l.launched {
		return
	}
	l.launched = true
	if l.patience != nil {
		l.patience.Stop()
	}
	if err := c.refusal(); err != nil {
		delete(c.waiting, l.keys[0])
		l.results = []result{{err: err}}
		close(l.done)
		return
	}
	c.launch(l, false)
}

// begin is called by the goroutine of a load. From then on nobody joins it who needs a load that has not begun.
func (c *countCache) begin(l *load) {
	// Those who were woken by what the load is for, such as a batch of likes, ask first.
	runtime.Gosched()
	c.mu.Lock()
	defer c.mu.Unlock()
	key := l.keys[0]
	delete(c.waiting, key)
	c.flights[key] = flight{load: l}
	l.began = c.now()
}

// refresh fetches entries again in the background, unless enough of that is under way. Its caller was told
// to by entry.hit, or had no time to wait for later ones.
func (c *countCache) refresh(entries ...*entry) {
	l := &load{began: c.now(), done: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refreshes >= maxRefreshes || c.refusal() != nil {
		for _, e := range entries {
			e.refreshing.Store(false)
		}
		return
	}
	for _, e := range entries {
		if _, ok := c.flights[e.count.Key]; !ok {
			c.enlist(l, e.count.Key)
		}
	}
	if len(l.keys) > 0 {
		c.metrics.refreshes.Add(float64(len(l.keys)))
		c.launch(l, true)
	}
}

// refusal says why no load can be started, or is nil. The caller holds mu.
func (c *countCache) refusal() error {
	switch {
	case c.closed:
		return fmt.Errorf("%w: shutting down", counter.ErrUnavailable)
	case c.loads >= c.maxLoads:
		return fmt.Errorf("%w: too many reads are under way", counter.ErrOverloaded)
	}
	return nil
}

// enlist adds a key to a load that is not launched yet. The caller holds mu.
func (c *countCache) enlist(l *load, key string) flight {
	f := flight{load: l, index: len(l.keys)}
	l.keys = append(l.keys, key)
	c.flights[key] = f
	return f
}

// launch starts a load. The caller holds mu and has seen no refusal.
func (c *countCache) launch(l *load, isRefresh bool) {
	c.loads++
	if isRefresh {
		c.refreshes++
	}
	c.wg.Go(func() {
		if l.launched {
			c.begin(l)
		}
		c.run(l)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.loads--
		if isRefresh {
			c.refreshes--
		}
		for _, key := range l.keys {
			if c.flights[key].load == l {
				delete(c.flights, key)
			}
			if next := c.waiting[key]; next != nil {
				c.launchWaiting(next)
			}
		}
		close(l.done)
	})
}

// run fetches the keys of a load and keeps what it gets.
func (c *countCache) run(l *load) {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	l.results = c.fetch(ctx, l.keys, l.began)
	for i := range l.results {
		if l.results[i].err != nil {
			c.metrics.loadErrors.Inc()
		}
	}
}

// fetch reads keys from the store and keeps what it gets. It began at the given time.
func (c *countCache) fetch(ctx context.Context, keys []string, began time.Duration) []result {
	results := make([]result, len(keys))
	readings, err := c.counts(ctx, keys)
	ended := c.now()
	for i, key := range keys {
		switch {
		case err != nil:
			results[i].err = err
		case readings[i].Err != nil:
			err := readings[i].Err
			results[i].err = err
			if storeStatus(err) == nil && !isContextError(err) {
				// A last known value may hide it from the caller and the log of calls.
				c.log.loadFailed(err)
			}
		default:
			results[i].entry, results[i].err = newEntry(key, readings[i].Count, began, ended)
			if results[i].err == nil {
				c.put(results[i].entry)
			}
		}
	}
	c.metrics.loadSeconds.Observe((ended - began).Seconds())
	return results
}

// counts calls the store. A store that panics or answers something else than was asked fails this load and
// nothing more.
func (c *countCache) counts(ctx context.Context, keys []string) (readings []counter.Reading, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			c.log.loadFailed(err)
		}
	}()
	readings = c.store.Counts(ctx, keys)
	if len(readings) != len(keys) {
		err = fmt.Errorf("the store answered %d of %d keys", len(readings), len(keys))
		c.log.loadFailed(err)
	}
	return readings, err
}
