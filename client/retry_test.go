package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func testRetrier() *retrier {
	return &retrier{
		timeout:        DefaultTimeout,
		attemptTimeout: DefaultAttemptTimeout,
		idLifetime:     4 * time.Minute,
		closed:         make(chan struct{}),
	}
}

func failure(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	return e
}

var errUnavailable = status.Error(codes.Unavailable, "connection lost")

func TestRetryEndsBeforeIDIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		var last time.Duration
		err := testRetrier().run(ctx, "Increment", "id", func(ctx context.Context) (bool, error) {
			last = time.Since(start)
			if deadline, ok := ctx.Deadline(); !ok || deadline.Sub(start) > 4*time.Minute {
				t.Errorf("attempt after %v may last until %v", last, deadline.Sub(start))
			}
			return true, errUnavailable
		})
		if took := time.Since(start); took > 4*time.Minute || took < 4*time.Minute-2*time.Second {
			t.Errorf("call took %v, want just under 4m", took)
		}
		if !errors.Is(err, ErrInDoubt) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrInDoubt and ErrUnavailable", err)
		}
	})
}

func TestRetryOfReadIsBoundByItsContextAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		err := testRetrier().run(ctx, "Get", "", func(context.Context) (bool, error) { return true, errUnavailable })
		if took := time.Since(start); took < 59*time.Minute {
			t.Errorf("call took %v, want nearly 1h", took)
		}
		if errors.Is(err, ErrInDoubt) {
			t.Errorf("a read is in doubt: %v", err)
		}
	})
}

func TestRetryDefaultTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := testRetrier().run(t.Context(), "Get", "", func(ctx context.Context) (bool, error) {
			attemptStart := time.Now()
			<-ctx.Done()
			if took := time.Since(attemptStart); took > DefaultAttemptTimeout {
				t.Errorf("attempt lived %v", took)
			}
			return true, status.FromContextError(ctx.Err()).Err()
		})
		if took := time.Since(start); took != DefaultTimeout {
			t.Errorf("call took %v, want %v", took, DefaultTimeout)
		}
		if e := failure(t, err); e.Attempts != 3 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded after 3 attempts", err)
		}
	})
}

func TestRetryHonoursRetryInfo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := status.New(codes.ResourceExhausted, "busy").
			WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		var at []time.Time
		err = testRetrier().run(t.Context(), "Get", "", func(context.Context) (bool, error) {
			at = append(at, time.Now())
			if len(at) == 2 {
				return true, nil
			}
			return true, s.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		if wait := at[1].Sub(at[0]); wait < 2*time.Second || wait > 2*time.Second+backoffBase {
			t.Errorf("waited %v, want 2s and up to %v more", wait, backoffBase)
		}
	})
}

func TestRetryDoesNotWaitInVain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := status.New(codes.Unavailable, "busy").
			WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err = testRetrier().run(t.Context(), "Get", "", func(context.Context) (bool, error) { return true, s.Err() })
		if took := time.Since(start); took != 0 {
			t.Errorf("waited %v though the call cannot outlast the wait", took)
		}
		if e := failure(t, err); e.RetryAfter != time.Minute || !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v with RetryAfter %v", err, e.RetryAfter)
		}
	})
}

func TestRetryBacksOff(t *testing.T) {
	t.Parallel()
	// Of 1,000 waits under full jitter the longest nears the ceiling and the shortest nears 0.
	for n, ceiling := range map[int]time.Duration{
		1: backoffBase, 2: 2 * backoffBase, 3: 4 * backoffBase, 6: backoffCap, 7: backoffCap, 1 << 40: backoffCap,
	} {
		shortest, longest := time.Hour, time.Duration(0)
		for range 1000 {
			wait := backoffAfter(n)
			shortest, longest = min(shortest, wait), max(longest, wait)
		}
		if longest >= ceiling || longest < ceiling*9/10 || shortest > ceiling/10 {
			t.Errorf("after attempt %d: waits from %v to %v, want them from 0 to %v", n, shortest, longest, ceiling)
		}
	}
}

func TestRetryOnlyWhatItMayMend(t *testing.T) {
	t.Parallel()
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		synctest.Test(t, func(t *testing.T) {
			attempts := 0
			_ = testRetrier().run(t.Context(), "Increment", "id", func(context.Context) (bool, error) {
				attempts++
				return true, status.Error(code, "")
			})
			want := code == codes.Unavailable || code == codes.DeadlineExceeded
			if got := attempts > 1; got != want {
				t.Errorf("%v: %d attempts", code, attempts)
			}
		})
	}
}

// Doubt is judged by what is known of an attempt: an error with a plusone reason, a code that no server sends
// after it has counted, or that nothing was sent.
func TestDoubt(t *testing.T) {
	t.Parallel()
	with := func(code codes.Code, domain, reason string) error {
		s, err := status.New(code, "").WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	for _, test := range []struct {
		name    string
		err     error
		unsent  bool
		inDoubt bool
	}{
		{name: "lost connection", err: errUnavailable, inDoubt: true},
		{name: "no connection", err: errUnavailable, unsent: true},
		{name: "unknown outcome", err: with(codes.Unavailable, errorDomain, "OUTCOME_UNKNOWN"), inDoubt: true},
		{name: "store unavailable", err: with(codes.Unavailable, errorDomain, "STORE_UNAVAILABLE")},
		{name: "another's store unavailable", err: with(codes.Unavailable, "example.com", "STORE_UNAVAILABLE"), inDoubt: true},
		{name: "overloaded", err: with(codes.ResourceExhausted, errorDomain, "OVERLOADED")},
		{name: "store full", err: with(codes.ResourceExhausted, errorDomain, "STORE_FULL")},
		{name: "limit of a proxy", err: status.Error(codes.ResourceExhausted, ""), inDoubt: true},
		{name: "crash", err: status.Error(codes.Internal, ""), inDoubt: true},
		{name: "not a status", err: errors.New("broken"), inDoubt: true},
		{name: "invalid", err: status.Error(codes.InvalidArgument, "")},
		{name: "expired id", err: with(codes.FailedPrecondition, errorDomain, "REQUEST_ID_EXPIRED")},
		{name: "no credentials", err: status.Error(codes.Unauthenticated, "")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := testRetrier()
				err := r.run(t.Context(), "Increment", "id", func(context.Context) (bool, error) { return !test.unsent, test.err })
				if got := errors.Is(err, ErrInDoubt); got != test.inDoubt {
					t.Errorf("in doubt is %v, want %v: %v", got, test.inDoubt, err)
				}
				// Whatever comes after an attempt in doubt, short of an answer, leaves the call in doubt.
				first := true
				err = r.run(t.Context(), "Increment", "id", func(context.Context) (bool, error) {
					if first {
						first = false
						return true, errUnavailable
					}
					return !test.unsent, test.err
				})
				if !errors.Is(err, ErrInDoubt) {
					t.Errorf("after a lost answer: got %v, want ErrInDoubt", err)
				}
			})
		})
	}
}

func TestCloseEndsWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan struct{})
		r := testRetrier()
		r.closed = closed
		s, err := status.New(codes.Unavailable, "").
			WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		start := time.Now()
		go func() {
			done <- r.run(t.Context(), "Get", "", func(context.Context) (bool, error) { return true, s.Err() })
		}()
		synctest.Wait()
		close(closed)
		if err := <-done; !errors.Is(err, ErrClosed) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrClosed and ErrUnavailable", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("closing took %v", took)
		}
	})
}
