package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
)

// round is what was added between two sendings.
type round struct {
	// done is closed when all of it is settled. The fields below are complete then.
	done chan struct{}
	// stripes are those of the stripes for which somebody waits.
	stripes []chan struct{}
	// awaited: a caller waits for it.
	awaited atomic.Bool

	mu      sync.Mutex
	waiting int              // batches
	failed  map[string]error // keys of which something was not counted, or nobody knows
	divided map[string]*divided
	first   error
}

// divided is a sum that is sent in several pieces, which may fare differently. What became of its increments is known
// when all of them are settled, and not of each if only some pieces were counted.
type divided struct {
	adds    int64
	counted bool // a piece was, or may have been
}

func (o *Coalescer) newRound() *round {
	r := &round{done: make(chan struct{})}
	o.mu.Lock()
	o.rounds[r] = struct{}{}
	o.mu.Unlock()
	return r
}

// settle ends a round.
func (o *Coalescer) settle(r *round) {
	close(r.done)
	for _, done := range r.stripes {
		close(done)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.rounds, r)
}

// leave makes room for as many keys.
func (o *Coalescer) leave(keys int) {
	o.keys.Add(-int64(keys))
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.room)
	o.room = make(chan struct{})
}

// dispatch sends a round in batches, as many at a time as there are slots.
func (o *Coalescer) dispatch(r *round, sums []sum, slots chan struct{}, sending *sync.WaitGroup) {
	pieces, zero := o.pieces(r, sums)
	o.counted.Add(zero.adds)
	o.leave(zero.keys)
	if len(pieces) == 0 {
		o.settle(r)
		return
	}
	r.waiting = (len(pieces) + batchEntries - 1) / batchEntries
	for b := range slices.Chunk(pieces, batchEntries) {
		slots <- struct{}{}
		sending.Go(func() {
			o.send(r, b)
			<-slots
			o.leave(sizeOf(b).keys)
			if r.batchDone() {
				o.join(r)
				o.settle(r)
			}
		})
	}
}

// size is how much there is in some sums.
type size struct {
	keys int
	adds int64
}

// sizeOf leaves out divided sums, which join counts.
func sizeOf(b []sum) size {
	var n size
	for _, s := range b {
		n.adds += s.adds
		if s.adds > 0 {
			n.keys++
		}
	}
	return n
}

// pieces are the sums as entries of batches, none beyond the largest delta. Sums of 0 need not be sent.
func (o *Coalescer) pieces(r *round, sums []sum) (pieces []sum, zero size) {
	pieces = make([]sum, 0, len(sums))
	for _, s := range sums {
		if s.delta == 0 {
			zero.keys++
			zero.adds += s.adds
		}
		if s.delta > o.cfg.maxDelta || s.delta < -o.cfg.maxDelta {
			if r.divided == nil {
				r.divided = make(map[string]*divided)
			}
			r.divided[s.key] = &divided{adds: s.adds}
			s.adds = 0
		}
		for s.delta != 0 {
			part := min(max(s.delta, -o.cfg.maxDelta), o.cfg.maxDelta)
			pieces = append(pieces, sum{s.key, part, s.adds})
			s.delta -= part
		}
	}
	return pieces, zero
}

// join settles the divided sums of a round when all of its pieces are settled. Where only some were counted, increments are
// in doubt: to repeat them would count those pieces twice.
func (o *Coalescer) join(r *round) {
	for key, d := range r.divided {
		switch err := r.failed[key]; {
		case err == nil:
			o.counted.Add(d.adds)
		case d.counted:
			o.inDoubt.Add(d.adds)
			r.failed[key] = countedInPart(err)
		default:
			o.refused.Add(d.adds)
		}
	}
	if len(r.divided) > 0 {
		o.leave(len(r.divided))
	}
}

// countedInPart is the failure of a piece as that of the whole sum. It has no request id, since the piece's would not settle
// the matter.
func countedInPart(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%w: %w", ErrInDoubt, err)
	}
	whole := *e
	whole.InDoubt, whole.RequestID = true, ""
	return &whole
}

// send has a batch counted, however long it takes, and notes what is not.
func (o *Coalescer) send(r *round, b []sum) {
	entries := make([]Entry, len(b))
	for i, s := range b {
		entries[i] = Entry{s.key, s.delta}
	}
	for tries := 1; ; tries++ {
		err := o.try(entries)
		switch {
		case err == nil:
			o.counted.Add(sizeOf(b).adds)
			r.count(b)
			return
		case errors.Is(err, ErrInDoubt):
			o.inDoubt.Add(sizeOf(b).adds)
			r.count(b)
		case isPassing(err) && o.client.retry.wait(o.ctx, backoffAfter(tries)):
			continue // nothing of it was counted, so it may have another id
		case isPassing(err) || len(b) == 1 || isOfCaller(err) || errors.Is(err, ErrClosed) || o.ctx.Err() != nil:
			o.refused.Add(sizeOf(b).adds)
		default:
			// One entry is to blame, and must not take the others with it.
			o.send(r, b[:len(b)/2])
			o.send(r, b[len(b)/2:])
			return
		}
		r.fail(b, err)
		if o.cfg.onFailure != nil {
			for _, e := range entries {
				o.cfg.onFailure(e, err)
			}
		}
		return
	}
}

// try sends a batch under an id of its own until that is too old.
func (o *Coalescer) try(entries []Entry) error {
	ctx, cancel := context.WithTimeout(o.ctx, o.client.retry.idLifetime)
	defer cancel()
	_, err := o.client.BatchIncrement(ctx, entries)
	return err
}

// isPassing reports whether a batch that was not counted may be later.
func isPassing(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOverloaded) || errors.Is(err, context.DeadlineExceeded) ||
		// The id was made just now, so the server's past is what has changed, or a clock, which may be set right.
		errors.Is(err, ErrRequestIDExpired) || errors.Is(err, ErrRequestIDEarly)
}

// isOfCaller reports whether a batch was refused because of who sent it, whatever its entries are.
func isOfCaller(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Code == codes.Unauthenticated || e.Reason == reasonMissingScope)
}

// batchDone reports whether it was the last batch.
func (r *round) batchDone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
	return r.waiting == 0
}

// count notes divided sums of which a piece was counted, or may have been.
func (r *round) count(b []sum) {
	if r.divided == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range b {
		if d := r.divided[s.key]; d != nil {
			d.counted = true
		}
	}
}

func (r *round) fail(b []sum, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first, r.failed = err, make(map[string]error, len(b))
	}
	for _, s := range b {
		r.failed[s.key] = err
	}
}
