package main_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	patience     = plusonetest.Patience
	pollInterval = plusonetest.PollInterval
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	var err error
	if binary, err = plusonetest.Build(plusonetest.Variant{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func execute(t testing.TB, env []string, args ...string) (output string, code int) {
	t.Helper()
	return plusonetest.Execute(t, binary, env, args...)
}

func start(t testing.TB, args ...string) *plusonetest.Instance {
	t.Helper()
	return plusonetest.Start(t, binary, args...)
}

func startAt(t testing.TB, args ...string) *plusonetest.Instance {
	t.Helper()
	return plusonetest.StartAt(t, binary, args...)
}

func launch(t testing.TB, args ...string) *plusonetest.Instance {
	t.Helper()
	return plusonetest.Launch(t, binary, args...)
}

func dial(t testing.TB, servers ...*plusonetest.Instance) *client.Client {
	t.Helper()
	return plusonetest.Dial(t, servers)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition on other processes.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(patience, pollInterval, done) {
		t.Fatalf("never: %s", what)
	}
}

// count is the count of a key, read afresh.
func count(t testing.TB, c *client.Client, key string) int64 {
	t.Helper()
	got, err := c.Get(context.Background(), key, client.Fresh())
	must(t, err)
	if got.Stale {
		t.Fatal("a fresh read of a store that works is stale")
	}
	return got.Count
}

// load increments keys until it is ended. Every call must be acknowledged, however often the client has to
// try.
type load struct {
	t     testing.TB
	keys  []string
	acked []atomic.Int64 // by key
	total atomic.Int64
	ended atomic.Bool
	group sync.WaitGroup
}

func startLoad(t testing.TB, c *client.Client, callers int, keys ...string) *load {
	l := &load{t: t, keys: keys, acked: make([]atomic.Int64, len(keys))}
	for caller := range callers {
		l.group.Go(func() {
			for n := caller; !l.ended.Load(); n++ {
				key := n % len(keys)
				if _, err := c.Increment(context.Background(), keys[key], 1); err != nil {
					t.Errorf("increment under load: %v", err)
					return
				}
				l.acked[key].Add(1)
				l.total.Add(1)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() {
	l.ended.Store(true)
	l.group.Wait()
}

// progress waits until so many more calls have been acknowledged.
func (l *load) progress(calls int64) {
	l.t.Helper()
	target := l.total.Load() + calls
	eventually(l.t, fmt.Sprintf("%d calls acknowledged", target), func() bool {
		return l.total.Load() >= target || l.t.Failed()
	})
	if l.t.Failed() {
		l.t.FailNow()
	}
}

// check ends the load and compares what was acknowledged with what read returns.
func (l *load) check(read func(key string) int64) {
	l.t.Helper()
	l.end()
	for i, key := range l.keys {
		if got, want := read(key), l.acked[i].Load(); got != want {
			l.t.Errorf("%s counts %d, and %d increments were acknowledged", key, got, want)
		}
	}
}
