package client

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
)

// Retries are made here, and not by the retryPolicy of a gRPC service config, because that cannot do what
// exactly-once counting needs: it gives up after 5 attempts, does not time a single attempt out, does not read
// RetryInfo, does not bound the age of a request id, and does not tell whether an attempt that failed may
// have been counted.

const (
	// backoffBase is the longest wait before the first retry: short, since by round robin the next
	// attempt is likely to meet another server.
	backoffBase = 50 * time.Millisecond
	// backoffCap keeps the last waits well within DefaultTimeout.
	backoffCap = time.Second
)

// retrier repeats a call until it is answered for good. It may be used concurrently.
type retrier struct {
	// timeout is for calls whose context has no deadline.
	timeout time.Duration
	// attemptTimeout is for each attempt.
	attemptTimeout time.Duration
	// idLifetime is how long a call may send its request id, so that no server has forgotten the id by
	// the time that the last attempt arrives.
	idLifetime time.Duration
	// closed ends all waits.
	closed <-chan struct{}
}

// attempt tries a call once. sent is false only if the request has certainly not left this process.
type attempt func(ctx context.Context) (sent bool, err error)

// run returns nil or an *Error. requestID is empty for a read.
func (r *retrier) run(ctx context.Context, method, requestID string, try attempt) error {
	ctx, cancel := r.bound(ctx, requestID)
	defer cancel()

	inDoubt := false
	for n := 1; ; n++ {
		sent, err := r.once(ctx, try)
		if err == nil {
			return nil
		}
		e := newError(method, requestID, err)
		e.Attempts = n
		// Doubt about one attempt outlasts a refusal of a later one: the earlier may still be on its way.
		inDoubt = inDoubt || requestID != "" && sent && e.mayHaveCounted()
		// A server may ask for so long a wait that the sum would overflow, and be none.
		if pause := max(e.RetryAfter, e.RetryAfter+backoffAfter(n)); r.mayRetry(ctx, e) && r.wait(ctx, pause) {
			continue
		}
		e.InDoubt = inDoubt
		if err := ctx.Err(); err != nil {
			e.causes = append(e.causes, err)
		}
		if r.isClosed() {
			e.causes = append(e.causes, ErrClosed)
		}
		return e
	}
}

// bound gives the call a deadline if it has none, and none later than its request id allows.
func (r *retrier) bound(ctx context.Context, requestID string) (context.Context, context.CancelFunc) {
	limit := r.timeout
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline)
	}
	if requestID != "" {
		limit = min(limit, r.idLifetime)
	}
	return context.WithTimeout(ctx, limit)
}

func (r *retrier) once(ctx context.Context, try attempt) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.attemptTimeout)
	defer cancel()
	return try(ctx)
}

// mayRetry reports whether the call is alive and a failure is one that another attempt can mend.
func (r *retrier) mayRetry(ctx context.Context, e *Error) bool {
	if ctx.Err() != nil || r.isClosed() {
		return false
	}
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.ResourceExhausted:
		return e.retryInfo
	default:
		return false
	}
}

// wait returns false at once if the call would be over before d has passed: the caller is better served by
// the reason now than by a timeout later.
func (r *retrier) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-r.closed:
		return false
	}
}

func (r *retrier) isClosed() bool {
	select {
	case <-r.closed:
		return true
	default:
		return false
	}
}

// backoffAfter is the wait after the nth attempt: anything up to backoffBase, doubled each time up to backoffCap
// ("full jitter"), so that callers who failed together do not come back together.
func backoffAfter(n int) time.Duration {
	ceiling := backoffCap
	if shift := n - 1; shift < 5 { // 50 ms << 5 is above the cap
		ceiling = min(ceiling, backoffBase<<shift)
	}
	return rand.N(ceiling)
}
