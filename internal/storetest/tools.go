package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
)

// run calls f n times at once and fails the test on the first error.
func run(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func isError(err, want error) bool { return errors.Is(err, want) }

// tally counts what was applied, by key.
type tally struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *tally) add(key string, outcome counter.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	if outcome == counter.Applied {
		c.n[key]++
	}
}

func (c *tally) totals() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// progress counts up.
type progress struct{ n atomic.Int64 }

func (p *progress) add(n int64) { p.n.Add(n) }
func (p *progress) get() int64  { return p.n.Load() }
