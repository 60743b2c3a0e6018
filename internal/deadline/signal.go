package deadline

import (
	"context"
	"sync/atomic"
	"time"
	"weak"
)

// Signal tells one goroutine that something is done for which it waits. It is used for one wait after the other, all of them with
// contexts of the same Timers if with any, and sent once for each.
//
// To wait for what is done, for the caller and for a deadline takes several times as long as to wait for one channel (BenchmarkWait). So a wait with a
// Context is for one channel, and the Timers look now and then whether it should end. Whoever changes the state from
// waiting wakes the one who waits, so that this happens once.
type Signal struct {
	state atomic.Uint64 // of the wait, and in the upper bits the number of the wait
	woken chan struct{} // has room for the message of a wait
	ctx   *Context      // of the wait, for whoever is looking
	known bool          // to the Timers
}

// States of a wait.
const (
	fresh      uint64 = iota // neither sent nor waited for
	waiting                  // for the signal alone
	looking                  // the same, while the Timers look at the context
	selecting                // for the signal and for the context
	sent                     // the wait ends, or need not begin
	sentAtLook               // sent while the Timers were looking, who wake the one who waits
	left                     // the wait has ended without it
	sentLate                 // sent after that

	states // how many there are
)

// NewSignal returns a signal that was not sent.
func NewSignal() *Signal { return &Signal{woken: make(chan struct{}, 1)} }

// become changes the state of the wait, unless it is not the one before any more.
func (s *Signal) become(before, after uint64) bool {
	return s.state.CompareAndSwap(before, before-before%states+after)
}

// begin begins a wait, unless the signal was sent already.
func (s *Signal) begin(as uint64) bool {
	state := s.state.Load()
	return state%states == fresh && s.become(state, as)
}

// Send ends the wait, or the one that is to begin. What was written before it can be read after that.
func (s *Signal) Send() {
	for {
		state := s.state.Load()
		switch state % states {
		case fresh:
			if s.become(state, sent) {
				return
			}
		case waiting, selecting:
			if s.become(state, sent) {
				s.woken <- struct{}{}
				return
			}
		case looking:
			if s.become(state, sentAtLook) {
				return
			}
		case left:
			if s.become(state, sentLate) {
				return
			}
		default: // it was sent
			return
		}
	}
}

// Wait returns nil when the signal is sent, or else the cause for which ctx has ended. A Context ends up to 4 ms before its deadline,
// or up to 8 ms late if it began less than that before; that it has ended otherwise is found up to 8 ms late. With many thousand
// signals it is more: 1 and 2 ms for each thousand.
func (s *Signal) Wait(ctx context.Context) error {
	c, ok := ctx.(*Context)
	if !ok {
		return s.waitFor(ctx)
	}
	s.ctx = c
	if !s.begin(waiting) {
		return nil
	}
	c.timers.watch(s)
	<-s.woken
	s.ctx = nil
	if s.state.Load()%states == left {
		return c.cause()
	}
	return nil
}

// waitFor is Wait for a context of which the Timers know nothing.
func (s *Signal) waitFor(ctx context.Context) error {
	if !s.begin(selecting) {
		return nil
	}
	select {
	case <-s.woken:
		return nil
	case <-ctx.Done():
		if state := s.state.Load(); state%states == selecting && s.become(state, left) {
			return context.Cause(ctx)
		}
		<-s.woken
		return nil
	}
}

// Sent reports whether the signal was sent, be it after the wait for it had ended.
func (s *Signal) Sent() bool {
	state := s.state.Load() % states
	return state == sent || state == sentLate
}

// Reset prepares a signal for its next wait. It must have been sent, if somebody has waited or is to send it.
func (s *Signal) Reset() {
	state := s.state.Load()
	s.state.Store(state - state%states + states)
}

// look ends the wait if its context ends before the next look.
func (s *Signal) look(state uint64, next time.Time) {
	if !s.become(state, looking) {
		return
	}
	state = state - state%states + looking
	over := s.ctx.endsBefore(next)
	switch {
	case !over && s.become(state, waiting):
		return
	case over && s.become(state, left):
	default: // it was sent meanwhile
		s.become(s.state.Load(), sent)
	}
	s.woken <- struct{}{}
}

// watched is a signal at which Timers look.
type watched struct {
	signal weak.Pointer[Signal]
	state  uint64 // at the last look
}

// watch has the wait for a signal ended when its context ends.
func (t *Timers) watch(s *Signal) {
	if !s.known {
		s.known = true
		t.mu.Lock()
		t.signals = append(t.signals, watched{signal: weak.Make(s)})
		t.mu.Unlock()
	}
	// Who begins to wait looks here after that, and look looks for those who wait once more after it has said that it stops.
	t.lookAgain()
}

// lookAgain has the signals looked at after a while, unless they will be.
func (t *Timers) lookAgain() {
	if !t.looking.Load() && t.looking.CompareAndSwap(false, true) {
		time.AfterFunc(tick, t.look)
	}
}

// look looks at all signals, for as long as somebody waits.
func (t *Timers) look() {
	if waits, pause := t.lookOnce(); waits {
		time.AfterFunc(pause, t.look)
		return
	}
	t.looking.Store(false)
	if waits, _ := t.lookOnce(); waits {
		t.lookAgain()
	}
}

// maxLooks is at how many signals it is looked every tick: at some 20 ns each, that is 2% of a core. Where there are more of
// them, it is looked less often, so that it is not more than that.
const maxLooks = 4096

// lookOnce ends the waits whose contexts end before the next look, and drops the signals that nobody uses any more. It reports whether
// somebody waits, and when to look again. Most waits end before they are found a second time, and take no look at their context.
func (t *Timers) lookOnce() (waits bool, pause time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pause = tick * time.Duration(1+len(t.signals)/maxLooks)
	next := time.Now().Add(pause)
	kept := t.signals[:0]
	for _, w := range t.signals {
		s := w.signal.Value()
		if s == nil {
			continue
		}
		state := s.state.Load()
		if state%states == waiting {
			waits = true
			if state == w.state {
				s.look(state, next)
			}
		}
		kept = append(kept, watched{w.signal, state})
	}
	clear(t.signals[len(kept):])
	t.signals = kept
	return waits, pause
}
