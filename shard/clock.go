package shard

import (
	"sync/atomic"
	"time"
)

// clock tells the Redis clock between two answers, from the last one and the local monotonic clock. It runs
// late by the time that answer took to arrive; scripts check whatever is derived from it. So it may
// tell a moment before a change that was made already.
type clock struct {
	started time.Time
	offset  atomic.Int64 // Redis Unix microseconds minus monotonic microseconds, 0 until known
}

func newClock() *clock { return &clock{started: time.Now()} }

func (c *clock) sync(micros int64) { c.offset.Store(micros - time.Since(c.started).Microseconds()) }

// milliseconds is the Redis clock in Unix milliseconds, 0 before the first answer.
func (c *clock) milliseconds() int64 {
	offset := c.offset.Load()
	if offset == 0 {
		return 0
	}
	return (offset + time.Since(c.started).Microseconds()) / 1000
}
