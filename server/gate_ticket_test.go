package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"
	"google.golang.org/grpc/codes"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/limit"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// newTicketed is a service with a gate whose store redeems tickets.
func newTicketed(t *testing.T, redis *redistest.Server, policies string) *gated {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{redis.Addr}, DisableCache: true, ForceSingleClient: true, ConnWriteTimeout: 3 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	limiter := limit.NewRedis(client, limit.RedisConfig{Tags: []string{"0"}, Metrics: limit.NewMetrics(prometheus.NewRegistry())})
	t.Cleanup(func() {
		_ = limiter.Close(context.WithoutCancel(t.Context()))
		client.Close()
	})
	g := &gated{store: &scriptedStore{}, policies: &policySet{}, guard: &scriptedGuard{}}
	g.policies.set(t, policies)
	g.store.apply = func(ctx context.Context, c counter.Change) (counter.Receipt, error) {
		if c.Ticket != nil {
			limiter.Redeem(ctx, []counter.Ticket{c.Ticket})
			if err := c.Ticket.Refused(); err != nil {
				return counter.Receipt{}, err
			}
		}
		return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}, nil
	}
	g.counterService = newService(t, g.store, Config{Policies: g.policies, Limiter: limiter, Tickets: true, Guard: g.guard})
	return g
}

// Where the store redeems tickets, an increment takes its tokens there, and is answered as if they had been taken before.
// Whatever else is limited takes them before.
func TestGateTickets(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	g := newTicketed(t, redis, `
default: {limits: {caller: 100/1h, actor: 2/1h}}
namespaces: {guarded: {guard: true}}
`)
	tickets := func() (n int) {
		for i := range g.store.changes {
			if g.store.changes[i].Ticket != nil {
				n++
			}
		}
		return n
	}
	view := func(actor string) error {
		return g.increment(t, &plusonev1.IncrementRequest{Key: "views/1", Actor: actor})
	}
	for range 2 {
		if err := view("a"); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second is refused without a ticket
		if wait := rateLimitedFor(t, view("a"), "actor"); wait <= 29*time.Minute || wait > 30*time.Minute {
			t.Errorf("a token comes after %v", wait)
		}
	}
	if len(g.store.changes) != 3 || tickets() != 3 {
		t.Errorf("the store saw %d changes with %d tickets, want 3 with 3", len(g.store.changes), tickets())
	}
	allowed, refused := value(t, g.gate.decisions.allowed[limit.Actor]), value(t, g.gate.decisions.exhausted[limit.Actor])
	if n := g.refusals(t, reasonRateLimited); allowed != 2 || refused != 2 || n != 2 {
		t.Errorf("%v allowed, %v refused by the limit, %v refused", allowed, refused, n)
	}

	if err := g.increment(t, &plusonev1.IncrementRequest{Key: "guarded/1", Actor: "b"}); err != nil || len(g.guard.asked) != 1 {
		t.Errorf("the guard was asked %d times, %v", len(g.guard.asked), err)
	}
	if _, err := likeMessage(t.Context(), g.counterService, &plusonev1.LikeRequest{Key: "views/1", Actor: "b"}); err != nil {
		t.Error(err)
	}
	if _, err := g.BatchIncrement(t.Context(), &plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{{Key: "views/1", Delta: 1}}}); err != nil {
		t.Error(err)
	}
	if tickets() != 3 {
		t.Errorf("%d tickets were made, want 3", tickets())
	}
	rateLimitedFor(t, view("b"), "actor")

	// A store that fails after it took the tokens, or before, says so.
	redeeming := g.store.apply
	g.store.apply = func(ctx context.Context, c counter.Change) (counter.Receipt, error) {
		_, err := redeeming(ctx, c)
		return counter.Receipt{}, errors.Join(err, counter.ErrInDoubt)
	}
	wantFailure(t, view("c"), failure{code: codes.Unavailable, reason: reasonOutcomeUnknown})
	if n := value(t, g.gate.decisions.undetermined[limit.Actor]); n != 0 {
		t.Errorf("%v times the limiter could not tell", n)
	}
	g.store.apply = func(context.Context, counter.Change) (counter.Receipt, error) {
		return counter.Receipt{}, counter.ErrOverloaded
	}
	wantFailure(t, view("c"), failure{code: codes.ResourceExhausted, reason: reasonOverloaded, retry: true})
	g.store.apply = redeeming
	redis.Stop()
	wantFailure(t, view("c"), failure{code: codes.Unavailable, reason: reasonStoreUnavailable, retry: true})
	redis.Cont()
	if n := value(t, g.gate.decisions.undetermined[limit.Actor]); n != 2 {
		t.Errorf("%v times the limiter could not tell, want 2", n)
	}
}
