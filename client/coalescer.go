package client

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/status"
)

// ErrFull: a Coalescer holds as many keys as it may, and was told to drop what comes then. Nothing was counted.
var ErrFull = errors.New("plusone: coalescer is full")

const (
	// stripeCount is the number of locks among which keys are spread, so that adders seldom meet at one.
	stripeCount = 64
	// batchEntries is the size of a batch. The costs of a call are nothing to those of its entries by then.
	batchEntries = 1000
	// batchesInFlight keep a server busy while the next batches are made, and few enough that a slow server is
	// met by larger sums and not by more calls.
	batchesInFlight = 4
	// awaitedShare is the part of the flush interval for which increments add up when a caller waits for one.
	awaitedShare = 5
	// sumLimit is in units of the largest delta: a key makes at most so many entries in a round.
	sumLimit = 100
)

// Coalescer adds increments up in this process and has the sums counted, a batch every few milliseconds: each increment
// exactly once, as if it had been sent alone, for a small part of the cost. What is pending when the process is killed is
// lost, so use [Coalescer.AddAndWait] where that matters.
//
// It holds one sum for each key that is pending, however many increments that is, and waits with new keys when there are
// too many of them ([WithMaxKeys]). While no server can be reached it keeps on trying and adding up. It is safe
// for concurrent use. Close it before its Client.
type Coalescer struct {
	client *Client
	cfg    coalescerConfig

	seed    maphash.Seed
	stripes [stripeCount]stripe
	keys    atomic.Int64 // pending: open, or on their way

	// rounds that are not done, of which one is open.
	mu     sync.Mutex
	rounds map[*round]struct{}
	room   chan struct{} // closed when there are fewer keys

	ctx     context.Context // ends what is on its way, when Close gives up
	cancel  context.CancelFunc
	wake    chan struct{} // something is pending
	now     chan struct{} // the open round is to be sent
	soon    chan struct{} // a caller waits for it
	closing chan struct{}
	ended   chan struct{} // everything is settled after closing
	close   sync.Once

	counted, refused, inDoubt, dropped atomic.Int64
}

// stripe is a part of the open round.
type stripe struct {
	mu     sync.Mutex
	round  *round
	closed bool
	index  map[string]int // of sums
	sums   []sum
	// done is closed when the round is settled. It is nil until somebody waits for it. A channel for each stripe, since
	// thousands who wait at one channel wait for its lock as well.
	done chan struct{}
	_    [64]byte // keeps locks of two stripes out of one cache line
}

// sum is what is pending of a key.
type sum struct {
	key   string
	delta int64
	adds  int64 // increments in it
}

// NewCoalescer starts a Coalescer. It fails if an option is out of range.
func (c *Client) NewCoalescer(opts ...CoalescerOption) (*Coalescer, error) {
	cfg, err := newCoalescerConfig(opts)
	if err != nil {
		return nil, err
	}
	o := &Coalescer{
		client: c, cfg: cfg, seed: maphash.MakeSeed(), rounds: map[*round]struct{}{}, room: make(chan struct{}),
		wake: make(chan struct{}, 1), now: make(chan struct{}, 1), soon: make(chan struct{}, 1),
		closing: make(chan struct{}), ended: make(chan struct{}),
	}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	open := o.newRound()
	for i := range o.stripes {
		o.stripes[i].round, o.stripes[i].index = open, map[string]int{}
	}
	go o.loop(open)
	return o, nil
}

// Add adds delta, as [Client.Increment] does, and returns at once: nil means that it is pending. It is counted within
// milliseconds while all is well. What becomes of it otherwise is told by [OnFailure], [Coalescer.Flush],
// [Coalescer.Close] and [Coalescer.Stats].
//
// If too many keys are pending it waits until there is room or ctx is done, or drops the increment and returns ErrFull
// ([DropWhenFull]). Errors: ErrFull, ErrInvalid, ErrClosed, and those of ctx: nothing will be counted.
func (o *Coalescer) Add(ctx context.Context, key string, delta int64) error {
	_, _, err := o.add(ctx, key, delta, false)
	return err
}

// AddAndWait is Add, and returns when the increment is counted, or is known not to be. It has what is pending sent after
// a fifth of the flush interval. Errors are those of Add and of
// [Client.BatchIncrement]. If ctx is done while the increment is on its way it is ErrInDoubt, and most likely counted
// soon. It is ErrInDoubt too if the key's sum was sent in several parts ([WithMaxDelta]) of which only some were counted. To
// repeat an increment, with whatever id, does not settle the doubt, since plusone knows the sum only.
func (o *Coalescer) AddAndWait(ctx context.Context, key string, delta int64) error {
	r, done, err := o.add(ctx, key, delta, true)
	if err != nil {
		return err
	}
	if !r.awaited.Load() && r.awaited.CompareAndSwap(false, true) {
		signal(o.soon)
	}
	if ctx.Done() == nil { // a plain wait costs half of what the choice does
		<-done
		return r.failed[key]
	}
	select {
	case <-done:
		return r.failed[key]
	case <-ctx.Done():
		e := newError(methodBatch, "", status.FromContextError(ctx.Err()).Err())
		e.Message, e.InDoubt = "the increment is on its way", true
		e.causes = append(e.causes, ctx.Err())
		return e
	}
}

// Flush sends what is pending and waits until all that was added before is settled. It returns the first failure
// among what was pending, or why ctx is done.
func (o *Coalescer) Flush(ctx context.Context) error {
	pending := o.pending()
	signal(o.now)
	return wait(ctx, pending)
}

// Close refuses further increments, and is a Flush. If ctx is done first it gives up what is on its way, which is then in
// doubt, and returns why ctx is done. Later calls wait for the same end.
func (o *Coalescer) Close(ctx context.Context) error {
	for i := range o.stripes {
		s := &o.stripes[i]
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
	}
	// Before anything is sent, or what fails at once would not be told.
	pending := o.pending()
	o.close.Do(func() { close(o.closing) })
	err := wait(ctx, pending)
	if ctx.Err() != nil {
		o.cancel()
	}
	<-o.ended
	o.cancel()
	return err
}

// pending are the rounds that are not settled.
func (o *Coalescer) pending() []*round {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.rounds))
}

// wait returns the first failure of rounds once they are settled.
func wait(ctx context.Context, rounds []*round) error {
	var failed error
	for _, r := range rounds {
		select {
		case <-r.done:
			if failed == nil {
				failed = r.first
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return failed
}

// CoalescerStats are numbers since the beginning, of increments as they were added, and keys pending now.
type CoalescerStats struct {
	// Counted by plusone. Refused: plusone said why they cannot be counted. InDoubt: nobody knows, or only a part of the sum
	// that they are in was counted. Dropped: the Coalescer was full.
	Counted, Refused, InDoubt, Dropped int64
	// Keys that are pending.
	Keys int64
}

// Stats are the numbers up to now.
func (o *Coalescer) Stats() CoalescerStats {
	return CoalescerStats{
		Counted: o.counted.Load(), Refused: o.refused.Load(), InDoubt: o.inDoubt.Load(), Dropped: o.dropped.Load(),
		Keys: o.keys.Load(),
	}
}

// add returns the round in which the increment will be counted and, for those who wait, what is closed when it is settled.
func (o *Coalescer) add(ctx context.Context, key string, delta int64, wait bool) (*round, <-chan struct{}, error) {
	if !utf8.ValidString(key) {
		return nil, nil, refuse(methodBatch, "", "key", notUTF8)
	}
	if delta == 0 || delta > o.cfg.maxDelta || delta < -o.cfg.maxDelta {
		return nil, nil, refuse(methodBatch, "", "delta", "must not be 0, nor beyond the largest delta")
	}
	s := &o.stripes[maphash.String(o.seed, key)%stripeCount]
	if r, done, err := o.tryAdd(s, key, delta, wait); !errors.Is(err, ErrFull) {
		return r, done, err
	}
	for {
		o.mu.Lock()
		room := o.room
		o.mu.Unlock()
		// Once more, since there may have been room before.
		r, done, err := o.tryAdd(s, key, delta, wait)
		switch {
		case !errors.Is(err, ErrFull):
			return r, done, err
		case o.cfg.drop:
			o.dropped.Add(1)
			return nil, nil, err
		}
		select {
		case <-room:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// tryAdd returns ErrFull if the increment does not fit.
func (o *Coalescer) tryAdd(s *stripe, key string, delta int64, wait bool) (*round, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	if i, ok := s.index[key]; ok {
		p := &s.sums[i]
		if total := p.delta + delta; total > sumLimit*o.cfg.maxDelta || total < -sumLimit*o.cfg.maxDelta {
			return nil, nil, ErrFull
		}
		p.delta += delta
		p.adds++
	} else {
		if o.keys.Add(1) > o.cfg.maxKeys {
			o.keys.Add(-1)
			return nil, nil, ErrFull
		}
		if len(s.sums) == 0 {
			signal(o.wake)
		}
		s.index[key] = len(s.sums)
		s.sums = append(s.sums, sum{key: key, delta: delta, adds: 1})
	}
	if wait && s.done == nil {
		s.done = make(chan struct{})
	}
	return s.round, s.done, nil
}

// signal tells without waiting.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// loop sends one round after the other.
func (o *Coalescer) loop(open *round) {
	var sending sync.WaitGroup
	defer func() {
		sending.Wait()
		close(o.ended)
	}()
	slots := make(chan struct{}, batchesInFlight)
	for closed := false; !closed; {
		select {
		case <-o.wake:
			closed = !o.pause()
		case <-o.now:
		case <-o.closing:
			closed = true
		}
		r := open
		open = o.newRound()
		o.dispatch(r, o.take(r, open), slots, &sending)
	}
	o.settle(open) // which nobody can add to
}

// pause has increments add up. It returns false if there will be no more.
func (o *Coalescer) pause() bool {
	timer := time.NewTimer(o.cfg.interval)
	defer timer.Stop()
	soon := o.soon
	for {
		select {
		case <-timer.C:
			return true
		case <-soon:
			timer.Reset(o.cfg.interval / awaitedShare)
			soon = nil // others who wait do not put it off
		case <-o.now:
			return true
		case <-o.closing:
			return false
		}
	}
}

// take gives all stripes the next round, and returns what was in the last.
func (o *Coalescer) take(last, next *round) []sum {
	var all []sum
	for i := range o.stripes {
		s := &o.stripes[i]
		s.mu.Lock()
		all = append(all, s.sums...)
		clear(s.sums)
		clear(s.index)
		s.sums, s.round = s.sums[:0], next
		if s.done != nil {
			last.stripes = append(last.stripes, s.done)
			s.done = nil
		}
		s.mu.Unlock()
	}
	return all
}
