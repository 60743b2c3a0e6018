package shard_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

var errTicket = errors.New("refused by its ticket")

type ticket struct {
	refuses  bool
	redeemed atomic.Int32
}

func (t *ticket) Redeemed() bool { return t.redeemed.Load() > 0 }

func (t *ticket) Refused() error {
	if t.refuses || !t.Redeemed() {
		return errTicket
	}
	return nil
}

// booth redeems tickets, slowly.
type booth struct {
	mu      sync.Mutex
	batches []int
}

func (b *booth) redeem(_ context.Context, tickets []counter.Ticket) {
	<-time.After(time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches = append(b.batches, len(tickets))
	for _, t := range tickets {
		if own, ok := t.(*ticket); ok {
			own.redeemed.Add(1)
		}
	}
}

func (b *booth) sizes() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.batches)
}

// Tickets of changes that are sent together are redeemed together, each once, before the changes are sent, and a change that
// its ticket refuses is not made.
func TestTickets(t *testing.T) {
	t.Parallel()
	const shards, key = 8, "key"
	synctest.Test(t, func(t *testing.T) {
		redis := twin.New(shard.RedisConfig{
			Shards: shards, Window: modelWindow, Dedupe: counter.DefaultDedupeWindow, MaxSpread: 10,
		}, func() int64 { return time.Now().UnixMicro() })
		open := func(redeem func(context.Context, []counter.Ticket)) *shard.Store {
			return shard.New(redis, twin.NewLedger(shards), shard.Config{
				Shards: shards, Dedupe: counter.DefaultDedupeWindow, BaseTTL: time.Hour, MissingTTL: time.Hour, Redeem: redeem,
				Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
			})
		}
		b := &booth{}
		store := open(b.redeem)
		defer store.Close(t.Context()) //nolint:errcheck // a test's store
		apply := func(ctx context.Context, key string, ticket counter.Ticket) error {
			_, err := store.Apply(ctx, counter.Change{
				Entries: []counter.Entry{{Key: key, Delta: 1}}, RequestID: counter.ParseRequestID(storetest.NewID(time.Now())), Ticket: ticket,
			})
			return err
		}
		count := func(key string) int64 {
			r := store.Counts(t.Context(), []string{key})[0]
			must(t, r.Err)
			return r.Value
		}

		var group sync.WaitGroup
		for i := range 20 {
			group.Go(func() {
				own := &ticket{refuses: i%4 == 0}
				if err := apply(t.Context(), key, own); errors.Is(err, errTicket) != own.refuses || !own.refuses && err != nil {
					t.Errorf("change %d: %v", i, err)
				}
				if n := own.redeemed.Load(); n != 1 {
					t.Errorf("ticket %d was redeemed %d times", i, n)
				}
				must(t, apply(t.Context(), key, nil))
			})
		}
		group.Wait()
		if n := count(key); n != 35 {
			t.Errorf("%d were counted, want 35", n)
		}
		if sizes := b.sizes(); len(sizes) > 2 {
			t.Errorf("tickets were redeemed by %v", sizes)
		}

		// Whoever leaves before takes nothing, and one who leaves meanwhile is not counted.
		left, cancel := context.WithCancel(t.Context())
		cancel()
		group.Go(func() { must(t, apply(t.Context(), key, &ticket{})) })
		synctest.Wait() // its ticket is being redeemed
		own := &ticket{}
		if err := apply(left, key, own); !errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt) {
			t.Errorf("a caller who has left: %v", err)
		}
		group.Wait()
		must(t, apply(t.Context(), key, nil))
		if own.Redeemed() {
			t.Error("the ticket of a caller who has left was redeemed")
		}
		leaving, cancel := context.WithTimeout(t.Context(), time.Millisecond/2)
		defer cancel()
		if err := apply(leaving, key, &ticket{}); !errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt) {
			t.Errorf("a caller who leaves: %v", err)
		}
		if n := count(key); n != 37 {
			t.Errorf("%d were counted, want 37", n)
		}

		// A change that is routed again has redeemed its ticket.
		_, err := redis.Spread(t.Context(), shard.Home("hot", shards), []string{"hot"}, 0)
		must(t, err)
		<-time.After(10 * time.Minute)
		before := len(b.sizes())
		for i := range 10 {
			own := &ticket{}
			must(t, apply(t.Context(), "hot", own))
			if n := own.redeemed.Load(); n != 1 {
				t.Errorf("ticket %d of a hot key was redeemed %d times", i, n)
			}
		}
		if n := count("hot"); n != 10 || len(b.sizes())-before != 10 {
			t.Errorf("%d were counted, by %d batches", n, len(b.sizes())-before)
		}

		deaf := open(nil)
		defer deaf.Close(t.Context()) //nolint:errcheck // a test's store
		if _, err := deaf.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: key, Delta: 1}}, Ticket: &ticket{}}); !errors.Is(err, errTicket) {
			t.Errorf("a ticket that was not redeemed: %v", err)
		}
	})
}
