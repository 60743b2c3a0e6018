package chaos_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// verdict is what became of a call.
type verdict int

const (
	// served: the change was counted.
	served verdict = iota
	// refused: too much was in flight. Like unavailable, it was not counted.
	refused
	unavailable
	// doubtful: it may have been counted.
	doubtful
	verdicts int = iota
)

// judge also returns when the caller may come back. It is false for an answer that no overload, nor a store that is
// slow or away, may cause.
func judge(err error) (v verdict, retry time.Duration, ok bool) {
	if err == nil {
		return served, 0, true
	}
	var reason string
	for _, detail := range status.Convert(err).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		case *errdetails.RetryInfo:
			retry = d.GetRetryDelay().AsDuration()
		}
	}
	switch code := status.Code(err); {
	case code == codes.ResourceExhausted && reason == "OVERLOADED":
		return refused, retry, retry > 0
	case code == codes.Unavailable && reason == "STORE_UNAVAILABLE":
		return unavailable, retry, retry > 0
	case code == codes.Unavailable && reason == "OUTCOME_UNKNOWN", code == codes.DeadlineExceeded:
		return doubtful, 0, true
	default:
		return 0, 0, false
	}
}

// crowd are callers who increment a key, each anew as soon as its last call was answered, or when a refusal says. None
// repeats a call.
type crowd struct {
	t        testing.TB
	key      string
	deadline time.Duration   // of each call
	ctx      context.Context // ends with the crowd
	end      context.CancelFunc
	group    sync.WaitGroup

	mu    sync.Mutex
	times [verdicts][]time.Duration // how long the calls took
	odd   error                     // an answer that there should not be, which ends the crowd
}

// gather starts so many callers, who share the connections.
func gather(t testing.TB, callers int, key string, deadline time.Duration, services ...plusonev1.CounterServiceClient) *crowd {
	c := &crowd{t: t, key: key, deadline: deadline}
	c.ctx, c.end = context.WithCancel(context.Background())
	for caller := range callers {
		c.group.Go(func() { c.run(services[caller%len(services)]) })
	}
	t.Cleanup(func() {
		c.end()
		c.group.Wait()
	})
	return c
}

func (c *crowd) run(service plusonev1.CounterServiceClient) {
	for c.ctx.Err() == nil {
		began := time.Now()
		err := increment(service, c.key, c.deadline)
		took := time.Since(began)
		v, pause, ok := judge(err)
		c.mu.Lock()
		if ok {
			c.times[v] = append(c.times[v], took)
		} else {
			c.odd = err
			c.end()
		}
		c.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
		}
	}
}

// increment calls once.
func increment(service plusonev1.CounterServiceClient, key string, deadline time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	_, err := service.Increment(ctx, &plusonev1.IncrementRequest{Key: key})
	return err
}

// until waits for a number of calls that have ended. It fails the test.
func (c *crowd) until(what string, enough func(ended [verdicts]int) bool) {
	c.t.Helper()
	waitUntil(c.t, what, func() bool { return c.ctx.Err() != nil || enough(c.counts()) })
	if c.ctx.Err() != nil {
		c.leave()
	}
}

func (c *crowd) counts() (ended [verdicts]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := range c.times {
		ended[v] = len(c.times[v])
	}
	return ended
}

// tally is a crowd's calls once it has ended.
type tally struct {
	ended [verdicts]int
	times [verdicts][]time.Duration // ascending
}

// leave ends the crowd once the calls under way have ended. It fails the test if there was an answer that there should not be.
func (c *crowd) leave() tally {
	c.t.Helper()
	c.end()
	c.group.Wait()
	if c.odd != nil {
		c.t.Fatalf("an answer that there should not be: %v", c.odd)
	}
	for v := range c.times {
		slices.Sort(c.times[v])
	}
	return tally{ended: c.counts(), times: c.times}
}

// wantServed expects that all was served.
func (c *crowd) wantServed() tally {
	c.t.Helper()
	got := c.leave()
	if got.sum() != got.ended[served] {
		c.t.Errorf("not all was served: %v", got)
	}
	return got
}

func (t tally) sum() (n int) {
	for _, ended := range t.ended {
		n += ended
	}
	return n
}

// quantile is 0 if no call had the verdict.
func (t tally) quantile(v verdict, q float64) time.Duration {
	if len(t.times[v]) == 0 {
		return 0
	}
	return t.times[v][int(q*float64(len(t.times[v])-1))]
}

func (t tally) String() string {
	text := fmt.Sprintf("%d calls", t.sum())
	for v, name := range []string{"served", "refused", "unavailable", "in doubt"} {
		if t.ended[v] == 0 {
			continue
		}
		text += fmt.Sprintf(", %d %s in %v to %v, half of them within %v", t.ended[v], name,
			t.quantile(verdict(v), 0).Round(time.Microsecond), t.quantile(verdict(v), 1).Round(time.Microsecond),
			t.quantile(verdict(v), 0.5).Round(time.Microsecond))
	}
	return text
}

// counted compares a fresh count of the key with what its callers were told.
func counted(t testing.TB, service plusonev1.CounterServiceClient, key string, tallies ...tally) {
	t.Helper()
	var low, high int64
	for _, told := range tallies {
		low += int64(told.ended[served])
		high += int64(told.ended[served] + told.ended[doubtful])
	}
	if got := freshCount(t, service, key); got < low || got > high {
		t.Errorf("%s counts %d, and its callers were told of %d, and of %d that may have been counted", key, got, low, high-low)
	}
}
