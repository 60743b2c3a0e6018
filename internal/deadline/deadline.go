// Package deadline gives calls a deadline for a tenth of what context.WithDeadline costs (BenchmarkContext). It is for
// servers in which each of many thousand calls a second has one, and hardly any reaches it.
package deadline

import (
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
	start time.Time
	last  atomic.Pointer[moment] // what was asked for last, which is what is asked for next as a rule

	mu      sync.Mutex
	moments map[int64]*moment // those to come
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

// Context is a context with a deadline, up to 4 ms early. Waiting by Wait is cheap; whoever asks for Done pays for it
// then. Release it.
type Context struct {
	context.Context
	at     time.Time
	moment *moment

	once     sync.Once
	complete context.Context // set by once
	cancel   context.CancelFunc
	asked    atomic.Bool // complete may be read
}

// With returns a context that ends with its parent or at a deadline, whichever is first.
func (t *Timers) With(parent context.Context, at time.Time) *Context {
	return &Context{Context: parent, at: at, moment: t.moment(at)}
}

// Release ends the context.
func (c *Context) Release() {
	if c.asked.Load() {
		c.cancel()
	}
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) {
	if at, ok := c.Context.Deadline(); ok && at.Before(c.at) {
		return at, true
	}
	return c.at, true
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} {
	c.once.Do(func() {
		c.complete, c.cancel = context.WithDeadline(c.Context, c.at)
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
	select {
	case <-c.moment.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
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
	case <-c.moment.passed:
		return context.DeadlineExceeded
	}
}
