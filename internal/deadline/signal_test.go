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

// late is more than a wait whose context has ended takes to end.
const late = 9 * time.Millisecond

func TestSignal(t *testing.T) {
	errLeft := errors.New("left")
	for name, c := range map[string]struct {
		end   func(cancel context.CancelCauseFunc, s *deadline.Signal)
		want  error
		after time.Duration
	}{
		"sent":  {func(_ context.CancelCauseFunc, s *deadline.Signal) { s.Send() }, nil, 0},
		"soon":  {func(_ context.CancelCauseFunc, s *deadline.Signal) { time.AfterFunc(time.Millisecond, s.Send) }, nil, time.Millisecond},
		"later": {func(_ context.CancelCauseFunc, s *deadline.Signal) { time.AfterFunc(time.Second/2, s.Send) }, nil, time.Second / 2},
		"gone":  {func(cancel context.CancelCauseFunc, _ *deadline.Signal) { cancel(errLeft) }, errLeft, 0},
		"caller": {func(cancel context.CancelCauseFunc, _ *deadline.Signal) {
			time.AfterFunc(time.Second/2, func() { cancel(errLeft) })
		}, errLeft, time.Second / 2},
		"deadline": {func(context.CancelCauseFunc, *deadline.Signal) {}, context.DeadlineExceeded, time.Second},
	} {
		for kind, with := range map[string]func(context.Context, *deadline.Timers) (context.Context, func()){
			"With": func(parent context.Context, timers *deadline.Timers) (context.Context, func()) {
				ctx := timers.With(parent, time.Now().Add(time.Second))
				return ctx, ctx.Release
			},
			"Within": func(parent context.Context, timers *deadline.Timers) (context.Context, func()) {
				ctx := timers.Within(parent, time.Second)
				return ctx, ctx.Release
			},
			"context": func(parent context.Context, _ *deadline.Timers) (context.Context, func()) {
				ctx, cancel := context.WithTimeout(parent, time.Second)
				return ctx, cancel
			},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					timers, s := deadline.NewTimers(), deadline.NewSignal()
					for range 2 { // it is used again
						parent, cancel := context.WithCancelCause(t.Context())
						ctx, release := with(parent, timers)
						began := time.Now()
						c.end(cancel, s)
						if err := s.Wait(ctx); !errors.Is(err, c.want) {
							t.Errorf("%v, want %v", err, c.want)
						}
						if off := time.Since(began) - c.after; off < -soon || off > late {
							t.Errorf("%v off", off)
						}
						if c.want != nil {
							if ctx.Err() == nil {
								t.Error("the wait says that its context has ended, and that says that it has not")
							}
							if s.Sent() {
								t.Error("it is sent before it was")
							}
							s.Send()
						}
						if !s.Sent() {
							t.Error("it is not sent")
						}
						s.Reset()
						release()
						cancel(nil)
					}
					<-time.After(late)
					if timers.Looks() {
						t.Error("signals are looked at for nobody")
					}
				})
			})
		}
	}
}

// Whoever sends, looks and leaves at the same time: each wait ends, once, and nothing of it is left for the next one.
func TestSignalInARace(t *testing.T) {
	t.Parallel()
	timers := deadline.NewTimers()
	over := make(chan struct{})
	var looks, waits sync.WaitGroup
	looks.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				timers.Look()
			}
		}
	})
	for range 4 {
		waits.Go(func() {
			s, toSend := deadline.NewSignal(), make(chan struct{}, 1)
			written := 0
			go func() {
				for n := range toSend {
					_ = n
					written++
					s.Send()
				}
			}()
			defer close(toSend)
			for n := 1; n <= 2_000; n++ {
				parent, cancel := context.WithCancel(t.Context())
				ctx := timers.With(parent, time.Now().Add(time.Minute))
				go cancel()
				toSend <- struct{}{}
				if err := s.Wait(ctx); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				for !s.Sent() {
					runtime.Gosched()
				}
				if written != n {
					t.Errorf("%d was written before signal %d was sent", written, n)
				}
				s.Reset()
				ctx.Release()
				cancel()
			}
		})
	}
	waits.Wait()
	close(over)
	looks.Wait()
}

// Signals that nobody uses any more are forgotten.
func TestSignalsAreForgotten(t *testing.T) {
	t.Parallel()
	timers := deadline.NewTimers()
	kept := deadline.NewSignal()
	use := func(s *deadline.Signal) {
		go s.Send()
		if err := s.Wait(timers.With(t.Context(), time.Now().Add(time.Minute))); err != nil {
			t.Error(err)
		}
		s.Reset()
	}
	for timers.Signals() < 10 { // one that was sent before the wait is not known
		use(deadline.NewSignal())
	}
	for before := timers.Signals(); timers.Signals() == before; {
		use(kept)
	}
	for range 100 { // goroutines that have sent may not have ended
		if runtime.GC(); timers.Signals() == 1 {
			break
		}
		timers.Look()
	}
	if n := timers.Signals(); n != 1 {
		t.Errorf("%d signals are known, want 1", n)
	}
	runtime.KeepAlive(kept)
}
