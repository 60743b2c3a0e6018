package limit

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// ErrLacking is why a change must not be made for which tokens lack.
var ErrLacking = errors.New("limit: out of tokens")

var errNotRedeemed = fmt.Errorf("%w: its ticket was not redeemed", counter.ErrUnavailable)

// Ticket asks for the tokens of a change when the change is about to be made, together with those of other changes. Until
// it is redeemed its change must not be made. Its methods may be called at any time.
type Ticket struct {
	request  request // is not changed any more once it is redeemed
	redeemed atomic.Bool
	keys     [3]string // room for those of the request
}

// Ticket makes a ticket for tokens of all of the buckets, as Take takes them. If it is known already that some lack, there
// is none, and the verdict says so.
func (r *Redis) Ticket(wants []Want) (*Ticket, Verdict) {
	verdict := r.known(wants)
	if !verdict.Allowed {
		return nil, verdict
	}
	t := &Ticket{}
	t.request.wants, t.request.keys = wants, t.keys[:0]
	for i := range wants {
		t.request.keys = append(t.request.keys, r.keyOf(&wants[i]))
	}
	return t, verdict
}

// Wants is what it asks for.
func (t *Ticket) Wants() []Want { return t.request.wants }

// Verdict is the answer, or an error as Take returns it, once the ticket was redeemed.
func (t *Ticket) Verdict() (verdict Verdict, redeemed bool, err error) {
	if !t.redeemed.Load() {
		return Verdict{}, false, nil
	}
	return t.request.verdict, true, t.request.err
}

// Redeemed implements counter.Ticket.
func (t *Ticket) Redeemed() bool { return t.redeemed.Load() }

// Refused implements counter.Ticket.
func (t *Ticket) Refused() error {
	verdict, redeemed, err := t.Verdict()
	switch {
	case !redeemed:
		return errNotRedeemed
	case err == nil && !verdict.Allowed:
		return ErrLacking
	default:
		return err
	}
}

// redeemer redeems tickets.
type redeemer struct {
	batch    batch
	tickets  []*Ticket
	requests []*request
}

// Redeem redeems tickets of this limiter, which is not that of a cluster, together: one after the other, in scripts of a
// bounded size. It returns soon after ctx is done, and a second after Redis was asked at the latest for each of them.
func (r *Redis) Redeem(ctx context.Context, tickets []counter.Ticket) {
	r.redeeming.Lock()
	defer r.redeeming.Unlock()
	s := &r.redeemer
	buckets := 0
	for _, ticket := range tickets {
		t, ok := ticket.(*Ticket)
		if !ok || t.redeemed.Load() {
			continue
		}
		if buckets += len(t.request.keys); buckets > maxBatchBuckets && len(s.tickets) > 0 {
			r.redeem(ctx)
			buckets = len(t.request.keys)
		}
		s.tickets, s.requests = append(s.tickets, t), append(s.requests, &t.request)
	}
	if len(s.tickets) > 0 {
		r.redeem(ctx)
	}
}

// redeem redeems what the redeemer has.
func (r *Redis) redeem(ctx context.Context) {
	s := &r.redeemer
	s.batch.settle(ctx, s.requests)
	now := time.Now()
	for _, t := range s.tickets {
		if q := &t.request; q.err == nil && !q.verdict.Allowed {
			r.empties.note(&q.wants[q.verdict.Lacking], now, q.verdict.Wait)
		}
		t.redeemed.Store(true)
	}
	clear(s.tickets)
	clear(s.requests)
	s.tickets, s.requests = s.tickets[:0], s.requests[:0]
}
