package deadline_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plusone-dev/plusone/internal/deadline"
)

// soon is more than a deadline is early by.
const soon = 5 * time.Millisecond

func TestWait(t *testing.T) {
	errLeft := errors.New("left")
	for name, c := range map[string]struct {
		end   func(cancel context.CancelCauseFunc, done chan struct{})
		want  error
		after time.Duration
	}{
		"done":     {func(_ context.CancelCauseFunc, done chan struct{}) { close(done) }, nil, 0},
		"caller":   {func(cancel context.CancelCauseFunc, _ chan struct{}) { cancel(errLeft) }, errLeft, 0},
		"deadline": {func(context.CancelCauseFunc, chan struct{}) {}, context.DeadlineExceeded, time.Second},
	} {
		for _, asked := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					ctx := deadline.NewTimers().With(parent, time.Now().Add(time.Second+soon/2)) // between two ticks
					defer ctx.Release()
					if asked {
						ctx.Done()
					}
					if err := ctx.Err(); err != nil {
						t.Fatalf("before its end: %v", err)
					}
					done := make(chan struct{})
					began := time.Now()
					c.end(cancel, done)
					if err := deadline.Wait(ctx, done); !errors.Is(err, c.want) {
						t.Errorf("Wait: %v, want %v", err, c.want)
					}
					if took := time.Since(began); took > c.after || took < c.after-soon {
						t.Errorf("Wait took %v, want %v", took, c.after)
					}
					if c.want != nil && ctx.Err() == nil {
						t.Error("Wait says that it has ended, and Err that it has not")
					}
					<-time.After(soon) // the exact deadline, for those who asked for Done
					if ended := ctx.Err() != nil; ended != (c.want != nil) {
						t.Errorf("ended is %t, want %t", ended, c.want != nil)
					}
				})
			})
		}
	}
}

// TestContext is about those who know nothing of this package.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timers := deadline.NewTimers()
		at := time.Now().Add(time.Second)
		ctx := timers.With(t.Context(), at)
		if got, ok := ctx.Deadline(); !ok || !got.Equal(at) {
			t.Errorf("deadline is %v, %t", got, ok)
		}
		derived, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		<-derived.Done()
		if took := time.Until(at).Abs(); took > soon || !errors.Is(derived.Err(), context.DeadlineExceeded) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("ended %v off its time, with %v and %v", took, derived.Err(), ctx.Err())
		}

		released := timers.With(t.Context(), time.Now().Add(time.Second))
		done := released.Done()
		released.Release()
		<-done
		if !errors.Is(released.Err(), context.Canceled) {
			t.Errorf("released: %v", released.Err())
		}

		near, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		want, _ := near.Deadline()
		if got, _ := timers.With(near, time.Now().Add(time.Hour)).Deadline(); !got.Equal(want) {
			t.Errorf("deadline is %v, and that of the parent %v is before", got, want)
		}
	})
}

// TestTimersAreShared: calls of one tick that wait have one timer, and what has passed leaves none.
func TestTimersAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timers := deadline.NewTimers()
		for i := range 100 {
			ctx := timers.With(t.Context(), time.Now().Add(time.Second+time.Duration(i%2)*10*time.Millisecond))
			go func() { _ = deadline.Wait(ctx, nil) }()
		}
		synctest.Wait()
		if n := timers.Len(); n != 2 {
			t.Errorf("%d timers for two deadlines", n)
		}
		<-time.After(2 * time.Second)
		if n := timers.Len(); n != 0 {
			t.Errorf("%d timers are left", n)
		}
	})
}

func BenchmarkContext(b *testing.B) {
	timers := deadline.NewTimers()
	done := make(chan struct{})
	close(done)
	for name, wait := range map[string]func(parent context.Context){
		"Timers": func(parent context.Context) {
			ctx := timers.With(parent, time.Now().Add(5*time.Second))
			_ = deadline.Wait(ctx, done)
			ctx.Release()
		},
		"WithDeadline": func(parent context.Context) {
			ctx, cancel := context.WithDeadline(parent, time.Now().Add(5*time.Second))
			_ = deadline.Wait(ctx, done)
			cancel()
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				parent, cancel := context.WithCancel(context.Background())
				wait(parent)
				cancel()
			}
		})
	}
}

// BenchmarkWait is a wait for a batch, which one goroutine ends for all who wait.
func BenchmarkWait(b *testing.B) {
	timers := deadline.NewTimers()
	for name, pair := range map[string]func() (wait func(context.Context) error, send func()){
		"Wait": func() (func(context.Context) error, func()) {
			done := make(chan struct{}, 1)
			return func(ctx context.Context) error { return deadline.Wait(ctx, done) }, func() { done <- struct{}{} }
		},
		"Signal": func() (func(context.Context) error, func()) {
			s := deadline.NewSignal()
			return func(ctx context.Context) error {
				defer s.Reset()
				return s.Wait(ctx)
			}, s.Send
		},
	} {
		b.Run(name, func(b *testing.B) {
			var mu sync.Mutex
			var next, batch []func()
			left := b.N
			var callers sync.WaitGroup
			for range 200 {
				callers.Go(func() {
					wait, send := pair()
					ctx := timers.Within(b.Context(), time.Minute)
					for {
						mu.Lock()
						if left == 0 {
							mu.Unlock()
							return
						}
						left, next = left-1, append(next, send)
						mu.Unlock()
						if err := wait(ctx); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for sent := 0; sent < b.N; sent += len(batch) {
				runtime.Gosched()
				mu.Lock()
				batch, next = next, batch[:0]
				mu.Unlock()
				for _, send := range batch {
					send()
				}
			}
			callers.Wait()
		})
	}
}
