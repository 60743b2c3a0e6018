// Package deadline gives calls a deadline for a tenth of what context.WithDeadline costs (BenchmarkContext). It is for
// servers in which each of many thousand calls a second has one, and hardly any reaches it.
package deadline

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// tick is how much before its time a deadline may pass. Those of one tick share a timer.
const tick = 4 * time.Millisecond

// Timers are the timers of deadlines. They may be used concurrently. Each lasts until its time, so there is one for
// each tick that is to come and has a deadline, whatever became of the calls.
type Timers struct {
	start   time.Time
	last    atomic.Pointer[moment] // what was asked for last, which is what is asked for next as a rule
	looking atomic.Bool            // at signals, every tick

	mu      sync.Mutex
	moments map[int64]*moment // those to come
	signals []watched         // all that there are
}

// moment is a point in time.
type moment struct {
	ticks  int64         // since the start
	passed chan struct{} // closed then
}

// NewTimers returns timers without any deadline yet.
func NewTimers() *Timers { return &Timers{start: time.Now(), moments: map[int64]*moment{}} }

func (t *Timers) moment(at time.Time) *moment {
	ticks := int64(at.Sub(t.start) / tick)
	if m := t.last.Load(); m != nil && m.ticks == ticks {
		return m
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.moments[ticks]
	if m == nil {
		m = &moment{ticks: ticks, passed: make(chan struct{})}
		t.moments[ticks] = m
		time.AfterFunc(time.Until(t.start.Add(time.Duration(ticks)*tick)), func() {
			t.mu.Lock()
			delete(t.moments, ticks)
			t.mu.Unlock()
			close(m.passed)
		})
	}
	t.last.Store(m)
	return m
}

// maxMargin is how much of a long deadline is kept to answer in.
const maxMargin = 100 * time.Millisecond

// Before is by when what is done for a call must have ended, so that its caller can still be answered: a tenth of the time left after
// now, at most 100 ms, before the deadline of ctx, and at most limit after now, unless limit is 0. It is false if there is no such time.
func Before(ctx context.Context, now time.Time, limit time.Duration) (by time.Time, ok bool) {
	by, ok = ctx.Deadline()
	if ok {
		left := by.Sub(now)
		by = by.Add(-min(left/10, maxMargin))
	}
	if limit > 0 && (!ok || by.Sub(now) > limit) {
		return now.Add(limit), true
	}
	return by, ok
}

// Context is a context with a deadline, up to 4 ms early. Waiting by Wait or for a Signal is cheap; whoever asks for Done pays for it
// then. Release it.
type Context struct {
	context.Context
	timers *Timers
	limit  time.Duration
	// at is the deadline, in nanoseconds since the start of the timers, 0 until somebody asks for it: most calls have ended by then,
	// without a look at the clock.
	at atomic.Int64

	once     sync.Once
	complete context.Context // set by once
	cancel   context.CancelFunc
	asked    atomic.Bool // complete may be read
}

// With returns a context that ends with its parent or at a deadline, whichever is first.
func (t *Timers) With(parent context.Context, at time.Time) *Context {
	c := &Context{Context: parent, timers: t}
	c.end(at)
	return c
}

// Within returns a context that ends with its parent or in time to answer the caller of that, see Before, and lasts for limit at
// most, which must be above 0. Limit begins when the deadline is first asked for, in a wait for a Signal up to 8 ms late.
func (t *Timers) Within(parent context.Context, limit time.Duration) *Context {
	return &Context{Context: parent, timers: t, limit: limit}
}

// end sets the deadline, unless it is set.
func (c *Context) end(at time.Time) {
	c.at.CompareAndSwap(0, cmp.Or(int64(at.Sub(c.timers.start)), 1))
}

// deadline is the deadline, which is settled now if it was not yet.
func (c *Context) deadline() time.Time {
	if c.at.Load() == 0 {
		by, _ := Before(c.Context, time.Now(), c.limit)
		c.end(by)
	}
	return c.timers.start.Add(time.Duration(c.at.Load()))
}

// Release ends the context.
func (c *Context) Release() {
	if c.asked.Load() {
		c.cancel()
	}
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) {
	at := c.deadline()
	if parent, ok := c.Context.Deadline(); ok && parent.Before(at) {
		return parent, true
	}
	return at, true
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} {
	c.once.Do(func() {
		c.complete, c.cancel = context.WithDeadline(c.Context, c.deadline())
		c.asked.Store(true)
	})
	return c.complete.Done()
}

// Err implements context.Context. As Wait, it may say that the deadline has passed before Done does.
func (c *Context) Err() error {
	ended := c.Context
	if c.asked.Load() {
		ended = c.complete
	}
	if err := ended.Err(); err != nil {
		return err
	}
	if c.endsBefore(time.Now().Add(tick)) {
		return context.DeadlineExceeded
	}
	return nil
}

// endsBefore reports whether the context has ended, or does before a moment that is soon.
func (c *Context) endsBefore(soon time.Time) bool {
	return c.deadline().Before(soon) || c.Context.Err() != nil
}

// cause is why the context has ended, which it has from now on if it was soon to.
func (c *Context) cause() error {
	if c.Context.Err() != nil {
		return context.Cause(c.Context)
	}
	c.at.Store(1)
	return context.DeadlineExceeded
}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if c.asked.Load() {
		return c.complete.Value(key) // by which contexts derived from this one find it
	}
	return c.Context.Value(key)
}

// Wait returns nil when something is done, or else the cause for which ctx has ended. If both are so, either is
// returned.
func Wait(ctx context.Context, done <-chan struct{}) error {
	c, ok := ctx.(*Context)
	if !ok {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case <-done:
		return nil
	case <-c.Context.Done():
		return context.Cause(c.Context)
	case <-c.timers.moment(c.deadline()).passed:
		return context.DeadlineExceeded
	}
}
