package server

import (
	"context"
	"errors"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// maxAhead is how far min_as_of may be ahead of the store's clock.
const maxAhead = 10 * time.Second

// read answers distinct keys that the cache has no fresh enough entries for, in their order. A key that
// cannot be answered as wanted gets its last known value, unless the caller has gone or asked for too
// late a moment.
func (c *countCache) read(ctx context.Context, keys []string, want freshness) []result {
	results := c.results(ctx, keys, want)
	for i, r := range results {
		if r.err == nil || errors.Is(r.err, errMinAsOfAhead) || ctx.Err() != nil {
			continue
		}
		if e := c.lastKnown(keys[i]); e != nil {
			results[i] = result{entry: e, stale: true}
			c.metrics.stale.Inc()
		}
	}
	return results
}

// results are what a read gets from the store. They are its own.
func (c *countCache) results(ctx context.Context, keys []string, want freshness) []result {
	if want.maxAge == 0 && want.minAsOf.IsZero() {
		return c.fetchNow(ctx, keys)
	}
	within, cancel := answerContext(ctx, 0)
	defer cancel()
	results := c.obtain(within, keys, want)
	if !want.minAsOf.IsZero() {
		c.await(within, keys, want.minAsOf, results)
	}
	return results
}

// fetchNow reads keys for a caller who can share nobody's load. So there is none: the read is made where the caller is, and
// ends when the caller must be answered. The admission bounds callers, and so these reads. What a caller had no time for is
// fetched in the background if it will be the last known value, so that the next caller in haste gets a later one.
func (c *countCache) fetchNow(ctx context.Context, keys []string) []result {
	within := c.deadlines.Within(ctx, c.timeout)
	defer within.Release()
	results := c.fetch(within, keys, c.now())
	var late []*entry
	for i := range results {
		if results[i].err == nil {
			continue
		}
		if within.Err() == nil {
			c.metrics.loadErrors.Inc()
		} else if e := c.lastKnown(keys[i]); e != nil {
			late = append(late, e)
		}
	}
	if len(late) > 0 && ctx.Err() == nil {
		c.refresh(late...)
	}
	return results
}

// await replaces results from before minAsOf by later ones: it waits until the store's clock must have
// passed minAsOf and reads again. It gives up when ctx ends, or when the store's clock does not get there.
func (c *countCache) await(ctx context.Context, keys []string, minAsOf time.Time, results []result) {
	const (
		firstPause = time.Millisecond
		lastPause  = time.Second
	)
	giveUp := c.now() + maxAhead + c.timeout
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		var late []int
		var lag time.Duration
		for i, r := range results {
			if r.err != nil || !r.entry.count.AsOf.Before(minAsOf) {
				continue
			}
			behind := minAsOf.Sub(r.entry.count.AsOf)
			if behind > maxAhead {
				results[i] = result{err: errMinAsOfAhead}
				continue
			}
			late = append(late, i)
			lag = max(lag, behind)
		}
		if len(late) == 0 {
			return
		}
		// Should the store's clock be coarse or slow, each pause is longer than the one before.
		err := sleep(ctx, lag+pause)
		if err == nil && c.now() > giveUp {
			err = counter.ErrUnavailable
		}
		if err != nil {
			for _, i := range late {
				results[i] = result{err: err}
			}
			return
		}
		lateKeys := make([]string, len(late))
		for j, i := range late {
			lateKeys[j] = keys[i]
		}
		for j, r := range c.obtain(ctx, lateKeys, freshness{minAsOf: minAsOf}) {
			results[late[j]] = r
		}
	}
}

// sleep waits for d, and returns early with an error when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
