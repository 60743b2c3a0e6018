package client

import (
	"errors"
	"time"
)

// Defaults of the options of NewCoalescer.
const (
	// DefaultFlushInterval is short enough for somebody who waits, and long enough that the keys of a busy process come
	// again and again in it.
	DefaultFlushInterval = 10 * time.Millisecond
	// DefaultMaxKeys bounds what is pending to some 20 MB with keys of 50 bytes.
	DefaultMaxKeys = 100_000
	// DefaultMaxDelta is that of the server.
	DefaultMaxDelta = 1_000_000_000_000
)

// CoalescerOption adjusts a Coalescer.
type CoalescerOption func(*coalescerConfig)

type coalescerConfig struct {
	interval  time.Duration
	maxKeys   int64
	maxDelta  int64
	drop      bool
	onFailure func(Entry, error)
}

func newCoalescerConfig(opts []CoalescerOption) (coalescerConfig, error) {
	c := coalescerConfig{interval: DefaultFlushInterval, maxKeys: DefaultMaxKeys, maxDelta: DefaultMaxDelta}
	for _, opt := range opts {
		opt(&c)
	}
	switch {
	case c.interval <= 0 || c.interval > time.Minute:
		return c, errors.New("plusone: flush interval must be above 0 and at most 1m")
	case c.maxKeys <= 0:
		return c, errors.New("plusone: max keys must be above 0")
	case c.maxDelta <= 0 || c.maxDelta > DefaultMaxDelta:
		return c, errors.New("plusone: max delta must be above 0 and at most 10^12")
	}
	return c, nil
}

// WithFlushInterval has increments add up for so long before they are sent, at most 1 minute, or for a fifth of it while
// a caller waits ([Coalescer.AddAndWait]). The default is DefaultFlushInterval.
func WithFlushInterval(d time.Duration) CoalescerOption {
	return func(c *coalescerConfig) { c.interval = d }
}

// WithMaxKeys bounds the keys that are pending. The default is DefaultMaxKeys.
func WithMaxKeys(n int) CoalescerOption {
	return func(c *coalescerConfig) { c.maxKeys = int64(n) }
}

// WithMaxDelta tells the largest delta that the server takes, either way, if that is less than DefaultMaxDelta: by its own
// setting, or by the policies of the namespaces, of which the least counts. A larger sum is sent in several parts; without
// this option the server would refuse it.
func WithMaxDelta(n int64) CoalescerOption {
	return func(c *coalescerConfig) { c.maxDelta = n }
}

// DropWhenFull has Add return ErrFull instead of waiting for room. Stats counts what was dropped.
func DropWhenFull() CoalescerOption {
	return func(c *coalescerConfig) { c.drop = true }
}

// OnFailure is called with each sum that was not counted, or maybe was (ErrInDoubt), and why, from any goroutine.
func OnFailure(f func(Entry, error)) CoalescerOption {
	return func(c *coalescerConfig) { c.onFailure = f }
}
