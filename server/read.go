package server

import (
	"context"
	"errors"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// maxAhead is how far min_as_of may be ahead of the store's clock.
const maxAhead = 10 * time.Second

// answer is what a read gets for one key: an entry, perhaps stale, or an error.
type answer struct {
	entry *entry
	stale bool
	err   error
}

// read answers distinct keys that the cache has no fresh enough entries for, in their order. A key that
// cannot be answered as wanted gets its last known value, unless the caller has gone or asked for too
// late a moment.
func (c *countCache) read(ctx context.Context, keys []string, want freshness) []answer {
	within, cancel := answerContext(ctx, 0)
	defer cancel()
	results := c.obtain(within, keys, want)
	if !want.minAsOf.IsZero() {
		c.await(within, keys, want.minAsOf, results)
	}
	gone := ctx.Err() != nil
	answers := make([]answer, len(keys))
	for i, r := range results {
		answers[i] = answer{entry: r.entry, err: r.err}
		if r.err == nil || gone || errors.Is(r.err, errMinAsOfAhead) {
			continue
		}
		if e := c.lastKnown(keys[i]); e != nil {
			answers[i] = answer{entry: e, stale: true}
			c.metrics.stale.Inc()
		}
	}
	return answers
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
			if r.err != nil || !r.entry.asOf.Before(minAsOf) {
				continue
			}
			behind := minAsOf.Sub(r.entry.asOf)
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
