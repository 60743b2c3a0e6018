package limit

import (
	"context"
	"errors"
	"fmt"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// redeem makes tickets and redeems them together.
func redeem(t *testing.T, r *Redis, wants ...[]Want) []*Ticket {
	t.Helper()
	tickets := make([]*Ticket, len(wants))
	all := make([]counter.Ticket, len(wants))
	for i := range wants {
		ticket, verdict := r.Ticket(wants[i])
		if !verdict.Allowed {
			t.Fatalf("ticket %d: %+v", i, verdict)
		}
		if _, redeemed, _ := ticket.Verdict(); redeemed || ticket.Redeemed() || !errors.Is(ticket.Refused(), counter.ErrUnavailable) {
			t.Errorf("ticket %d lets a change in before it is redeemed", i)
		}
		tickets[i], all[i] = ticket, ticket
	}
	r.Redeem(t.Context(), all)
	return tickets
}

// Tickets that are redeemed together take tokens one after the other, each once, from all of its buckets or from none.
func TestTickets(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := newRedis(t, false, server.Addr)
	wants := func(actor string) []Want {
		return []Want{
			{Kind: Actor, Who: actor, Rate: rate(t, "2/1h"), Cost: 1},
			{Kind: Caller, Who: "web", Rate: rate(t, "5/1h"), Cost: 1},
		}
	}
	tickets := redeem(t, r, wants("a"), wants("a"), wants("a"), wants("b"), wants("b"), wants("c"), wants("d"))
	for i, lacking := range []int{-1, -1, 0, -1, -1, -1, 1} {
		verdict, redeemed, err := tickets[i].Verdict()
		if err != nil || !redeemed || verdict.Allowed != (lacking < 0) || verdict.Lacking != max(lacking, 0) {
			t.Errorf("ticket %d: %+v, redeemed %t, %v", i, verdict, redeemed, err)
		}
		if refused := tickets[i].Refused(); errors.Is(refused, ErrLacking) != (lacking >= 0) || lacking < 0 && refused != nil {
			t.Errorf("ticket %d refuses: %v", i, refused)
		}
	}
	if _, verdict := r.Ticket(wants("a")); verdict.Allowed {
		t.Error("what is known to be empty gets a ticket")
	}
	d := wants("d")[:1]
	if r.Redeem(t.Context(), []counter.Ticket{tickets[0]}); tickets[0].Refused() != nil {
		t.Error("a ticket was redeemed twice")
	}
	if v := take(t, r, d...); !v.Allowed {
		t.Error("a ticket that was refused took a token of another bucket")
	}
	if v := take(t, r, wants("b")[0]); v.Allowed || v.Lacking != 0 {
		t.Errorf("Take, after tickets took all tokens: %+v", v)
	}

	server.Stop()
	if err := redeem(t, r, wants("e")[:1])[0].Refused(); !errors.Is(err, counter.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	server.Cont()
}

// However many tickets there are, a script is bounded.
func TestTicketsAreSplit(t *testing.T) {
	t.Parallel()
	r := newRedis(t, false, redistest.Start(t).Addr)
	var wants [][]Want
	for i := range 3 * maxBatchBuckets / 4 {
		who := fmt.Sprint("user:", i)
		wants = append(wants, []Want{
			{Kind: Actor, Who: who, Rate: rate(t, "1/1h"), Cost: 1}, {Kind: ActorKey, Who: who, Key: "k", Rate: rate(t, "1/1h"), Cost: 1},
		})
	}
	for i, ticket := range redeem(t, r, wants...) {
		if err := ticket.Refused(); err != nil {
			t.Fatalf("ticket %d: %v", i, err)
		}
	}
	var m dto.Metric
	if err := r.cfg.Metrics.requests.Write(&m); err != nil {
		t.Fatal(err)
	}
	if n := m.GetHistogram().GetSampleCount(); n != 2 {
		t.Errorf("%d scripts for %d buckets", n, 2*len(wants))
	}
}

// ticketTaker is a limiter whose tokens are taken by tickets.
type ticketTaker struct{ *Redis }

func (l ticketTaker) Take(ctx context.Context, wants []Want) (Verdict, error) {
	ticket, verdict := l.Ticket(wants)
	if !verdict.Allowed {
		return verdict, nil
	}
	l.Redeem(ctx, []counter.Ticket{ticket})
	verdict, _, err := ticket.Verdict()
	return verdict, err
}
