package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
)

func dial(t testing.TB, target string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// patient is a context that outlasts anything that a test waits for, also on a busy machine.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func asError(t testing.TB, err error) *client.Error {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want a *client.Error", err, err)
	}
	return e
}

// checkCounted asserts that the key was counted as often as it should be, in this many attempts, all under one
// UUIDv7.
func checkCounted(t testing.TB, store *fakeStore, key string, want int64, attempts int) {
	t.Helper()
	if got := store.total(key); got != want {
		t.Errorf("%s is %d, want %d", key, got, want)
	}
	ids := store.attemptIDs()
	if len(ids) != attempts {
		t.Fatalf("%d attempts arrived, want %d", len(ids), attempts)
	}
	id, err := uuid.Parse(ids[0])
	if err != nil || id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		t.Errorf("request id %q is not a UUIDv7", ids[0])
	}
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("attempts of one call had the ids %q", ids)
	}
}

func TestFaultsAreRetriedAndCountedOnce(t *testing.T) {
	t.Parallel()
	lost := func(s *fakeServer) fault { return s.loseAnswer }
	unavailable := func(*fakeServer) fault { return refuseWith(codes.Unavailable, reason("STORE_UNAVAILABLE")) }
	unknown := func(s *fakeServer) fault {
		return func(ctx context.Context, apply func() (any, error)) (any, error) {
			_, _ = apply()
			return refuseWith(codes.Unavailable, reason("OUTCOME_UNKNOWN"))(ctx, nil)
		}
	}
	overloaded := func(*fakeServer) fault {
		return refuseWith(codes.ResourceExhausted, reason("OVERLOADED"), retryIn(time.Millisecond))
	}
	slow := func(*fakeServer) fault { return answerNever }

	for _, test := range []struct {
		name   string
		faults []func(*fakeServer) fault
		opts   []client.Option
	}{
		{name: "none"},
		{name: "answer lost", faults: []func(*fakeServer) fault{lost}},
		{name: "answers lost", faults: []func(*fakeServer) fault{lost, lost}},
		{name: "unavailable", faults: []func(*fakeServer) fault{unavailable, unavailable, unavailable, unavailable, unavailable, unavailable}},
		{name: "outcome unknown", faults: []func(*fakeServer) fault{unknown}},
		{name: "overloaded", faults: []func(*fakeServer) fault{overloaded, overloaded}},
		{
			name: "slow attempts", faults: []func(*fakeServer) fault{slow, slow},
			opts: []client.Option{client.WithAttemptTimeout(200 * time.Millisecond)},
		},
		{name: "all", faults: []func(*fakeServer) fault{overloaded, unavailable, lost, overloaded, unknown, unavailable}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			t.Run("Increment", func(t *testing.T) {
				t.Parallel()
				store := newFakeStore()
				server := serve(t, store)
				for _, f := range test.faults {
					server.then(f(server))
				}
				receipt, err := dial(t, server.addr, test.opts...).Increment(patient(t), "views/a", 3)
				if err != nil {
					t.Fatal(err)
				}
				if receipt.Outcome != client.Applied || !receipt.AsOf.Equal(epoch.Add(time.Second)) {
					t.Errorf("got %v as of %v", receipt.Outcome, receipt.AsOf)
				}
				checkCounted(t, store, "views/a", 3, len(test.faults)+1)
			})
			t.Run("BatchIncrement", func(t *testing.T) {
				t.Parallel()
				store := newFakeStore()
				server := serve(t, store)
				for _, f := range test.faults {
					server.then(f(server))
				}
				receipt, err := dial(t, server.addr, test.opts...).BatchIncrement(patient(t),
					[]client.Entry{{Key: "views/a", Delta: 3}, {Key: "views/b", Delta: -4}, {Key: "views/a", Delta: 5}})
				if err != nil {
					t.Fatal(err)
				}
				if receipt.Outcome != client.Applied || !receipt.AsOf.Equal(epoch.Add(time.Second)) {
					t.Errorf("got %v as of %v", receipt.Outcome, receipt.AsOf)
				}
				checkCounted(t, store, "views/a", 8, len(test.faults)+1)
				checkCounted(t, store, "views/b", -4, len(test.faults)+1)
			})
		})
	}
}

func TestCallersRequestID(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	c := dial(t, server.addr)
	ctx := patient(t)
	entries := []client.Entry{{Key: "views/b", Delta: 1}}
	for _, want := range []client.Outcome{client.Applied, client.Duplicate} {
		receipt, err := c.Increment(ctx, "views/a", 1, client.WithRequestID("event-1"))
		if err != nil || receipt.Outcome != want {
			t.Errorf("Increment: got %v, %v, want %v", receipt.Outcome, err, want)
		}
		receipt, err = c.BatchIncrement(ctx, entries, client.WithRequestID("event-2"))
		if err != nil || receipt.Outcome != want {
			t.Errorf("BatchIncrement: got %v, %v, want %v", receipt.Outcome, err, want)
		}
	}
	want := []string{"event-1", "event-2", "event-1", "event-2"}
	if ids := store.attemptIDs(); !slices.Equal(ids, want) {
		t.Errorf("ids are %q, want %q", ids, want)
	}

	// Who counted a caller's id, if the first answer was lost, nobody can say.
	server.then(server.loseAnswer)
	receipt, err := c.Increment(ctx, "views/a", 1, client.WithRequestID("event-3"))
	if err != nil || receipt.Outcome != client.Duplicate {
		t.Errorf("after a lost answer: got %v, %v, want Duplicate", receipt.Outcome, err)
	}
	if got := store.total("views/a"); got != 2 {
		t.Errorf("views/a is %d, want 2", got)
	}
}

func TestCallsHaveDistinctIDs(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	for range 20 {
		if _, err := c.Increment(patient(t), "views/a", 1, client.WithRequestID("")); err != nil {
			t.Fatal(err)
		}
	}
	ids := store.attemptIDs()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 20 || store.total("views/a") != 20 {
		t.Errorf("views/a is %d after 20 calls with the ids %q", store.total("views/a"), ids)
	}
	// Ids carry the time at which they were made.
	sec, nsec := uuid.MustParse(ids[0]).Time().UnixTime()
	if age := time.Since(time.Unix(sec, nsec)); age < -time.Millisecond || age > time.Minute {
		t.Errorf("an id made now is %v old", age)
	}
}

func TestLargestBatch(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	entries := make([]client.Entry, 10_000)
	for i := range entries {
		entries[i] = client.Entry{Key: fmt.Sprintf("%0256d", i), Delta: -1}
	}
	id := strings.Repeat("x", 128)
	if _, err := c.BatchIncrement(patient(t), entries, client.WithRequestID(id)); err != nil {
		t.Fatal(err)
	}
	if got := store.total(entries[9_999].Key); got != -1 {
		t.Errorf("the last entry is %d, want -1", got)
	}
}

func TestOncePer(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	// A lost answer must not make the actor's first change look like a second one.
	server.then(server.loseAnswer)
	c := dial(t, server.addr)
	for _, want := range []client.Outcome{client.Applied, client.AlreadyCounted} {
		receipt, err := c.Increment(patient(t), "views/a", 1, client.OncePer("ann", 24*time.Hour))
		if err != nil || receipt.Outcome != want {
			t.Errorf("got %v, %v, want %v", receipt.Outcome, err, want)
		}
	}
	if got := store.total("views/a"); got != 1 {
		t.Errorf("views/a is %d, want 1", got)
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	unavailable := refuseWith(codes.Unavailable, reason("STORE_UNAVAILABLE"))
	server := serve(t, store)
	c := dial(t, server.addr)
	ctx := patient(t)
	receipt, err := c.BatchIncrement(ctx, []client.Entry{{Key: "a", Delta: 2}, {Key: "b", Delta: 3}})
	if err != nil {
		t.Fatal(err)
	}

	server.then(unavailable, unavailable)
	got, err := c.Get(ctx, "a")
	if want := (client.Count{Key: "a", Count: 2, AsOf: receipt.AsOf}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if r := store.lastRead(); r.GetMaxAge() != nil || r.GetMinAsOf() != nil {
		t.Errorf("asked %v", r)
	}

	server.then(unavailable, unavailable)
	counts, err := c.BatchGet(ctx, []string{"b", "none", "a", "b"}, client.Fresh(), client.MinAsOf(receipt.AsOf))
	want := []client.Count{
		{Key: "b", Count: 3, AsOf: receipt.AsOf},
		{Key: "none", AsOf: receipt.AsOf},
		{Key: "a", Count: 2, AsOf: receipt.AsOf},
		{Key: "b", Count: 3, AsOf: receipt.AsOf},
	}
	if err != nil || !slices.Equal(counts, want) {
		t.Errorf("got %+v, %v, want %+v", counts, err, want)
	}
	r := store.lastRead()
	if r.GetMaxAge() == nil || r.GetMaxAge().AsDuration() != 0 || !r.GetMinAsOf().AsTime().Equal(receipt.AsOf) {
		t.Errorf("asked %v", r)
	}

	if _, err := c.Get(ctx, "a", client.MaxAge(3*time.Second), client.MinAsOf(time.Time{})); err != nil {
		t.Fatal(err)
	}
	if r := store.lastRead(); r.GetMaxAge().AsDuration() != 3*time.Second || r.GetMinAsOf() != nil {
		t.Errorf("asked %v", r)
	}
}

func TestCountFields(t *testing.T) {
	t.Parallel()
	server := serve(t, newFakeStore(), func(context.Context, func() (any, error)) (any, error) {
		return &plusonev1.GetResponse{Count: &plusonev1.Count{Key: "a", Count: 7, Likes: 5, Stale: true}}, nil
	})
	got, err := dial(t, server.addr).Get(patient(t), "a")
	if want := (client.Count{Key: "a", Count: 7, Likes: 5, Stale: true}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestConcurrentCallsUnderFaults(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	for i := range 30 {
		faults := []fault{nil, refuseWith(codes.Unavailable, reason("STORE_UNAVAILABLE")), server.loseAnswer}
		server.then(faults[i%3])
	}
	c := dial(t, server.addr)
	ctx := patient(t)
	var callers sync.WaitGroup
	const nCallers, nCalls = 8, 25
	for range nCallers {
		callers.Go(func() {
			for range nCalls {
				if receipt, err := c.Increment(ctx, "views/a", 1); err != nil || receipt.Outcome != client.Applied {
					t.Errorf("got %v, %v, want Applied", receipt.Outcome, err)
				}
				if _, err := c.Get(ctx, "views/a"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	if got := store.total("views/a"); got != nCallers*nCalls {
		t.Errorf("views/a is %d, want %d", got, nCallers*nCalls)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	counted := make(chan struct{})
	server := serve(t, store, func(ctx context.Context, apply func() (any, error)) (any, error) {
		_, _ = apply()
		close(counted)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	c := dial(t, server.addr, client.WithAttemptTimeout(time.Minute))
	done := make(chan error, 1)
	go func() {
		_, err := c.Increment(patient(t), "views/a", 1)
		done <- err
	}()
	<-counted
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := <-done; !errors.Is(err, client.ErrClosed) || !errors.Is(err, client.ErrInDoubt) {
		t.Errorf("call under way: got %v, want ErrClosed and ErrInDoubt", err)
	}
	if _, err := c.Increment(patient(t), "views/a", 1); !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("call after close: got %v, want ErrClosed, not in doubt", err)
	}
	checkCounted(t, store, "views/a", 1, 1)
}

func BenchmarkIncrement(b *testing.B) {
	c := dial(b, serve(b, newFakeStore()).addr)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Increment(b.Context(), "views/a", 1); err != nil {
				b.Error(err)
			}
		}
	})
}
