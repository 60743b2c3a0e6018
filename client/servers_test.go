package client_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/plusone-dev/plusone/client"
)

func TestServerRestart(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	// A socket file, unlike a port, is not taken by another process while the server is down.
	at := serverOptions{network: "unix", addr: filepath.Join(t.TempDir(), "s")}
	counted := make(chan struct{})
	first := serveOn(t, at, store, func(ctx context.Context, apply func() (any, error)) (any, error) {
		_, _ = apply()
		close(counted)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	c := dial(t, "unix://"+at.addr, client.WithAttemptTimeout(time.Minute))
	ctx := patient(t)
	done := make(chan error, 1)
	go func() {
		receipt, err := c.Increment(ctx, "views/a", 1)
		if err == nil && receipt.Outcome != client.Applied {
			err = errors.New("outcome is " + receipt.Outcome.String())
		}
		done <- err
	}()
	<-counted
	first.grpc.Stop()
	serveOn(t, at, store)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkCounted(t, store, "views/a", 1, 2)
}

func TestDialIsLazy(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	at := serverOptions{network: "unix", addr: filepath.Join(t.TempDir(), "s")}
	c := dial(t, "unix://"+at.addr)
	serveOn(t, at, store)
	if _, err := c.Increment(patient(t), "views/a", 1); err != nil {
		t.Fatal(err)
	}
	checkCounted(t, store, "views/a", 1, 1)
}

// dialAll dials servers as if one name resolved to all of them.
func dialAll(t *testing.T, servers ...*fakeServer) *client.Client {
	t.Helper()
	var state resolver.State
	for _, s := range servers {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.addr}}})
	}
	r := manual.NewBuilderWithScheme("all")
	r.InitialState(state)
	return dial(t, "all:///servers", client.WithDialOptions(grpc.WithResolvers(r)))
}

func TestTrafficGoesToHealthyServers(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	a, b := serve(t, store), serve(t, store)
	a.setServing(false)
	c := dialAll(t, a, b)
	ctx := patient(t)
	const calls = 50
	for range calls {
		if _, err := c.Increment(ctx, "views/a", 1); err != nil {
			t.Fatal(err)
		}
	}
	if a.calls.Load() != 0 || b.calls.Load() != calls {
		t.Errorf("the unhealthy server got %d calls, the healthy one %d", a.calls.Load(), b.calls.Load())
	}

	// Once the other is healthy too, calls go round robin; news of it take a moment.
	a.setServing(true)
	n := int64(calls)
	for ; a.calls.Load() == 0; n++ {
		if _, err := c.Increment(ctx, "views/a", 1); err != nil {
			t.Fatal(err)
		}
	}
	if got := store.total("views/a"); got != n {
		t.Errorf("views/a is %d, want %d", got, n)
	}
}

func TestRetryMeetsAnotherServer(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	a, b := serve(t, store), serve(t, store)
	c := dialAll(t, a, b)
	ctx := patient(t)
	n := int64(0)
	for ; a.calls.Load() == 0 || b.calls.Load() == 0; n++ { // until both are connected
		if _, err := c.Increment(ctx, "views/a", 1); err != nil {
			t.Fatal(err)
		}
	}
	// The first server dies with the next change that it counts; the other then takes them all.
	a.then(a.loseAnswer)
	_ = a.conns.Close()
	for range 4 {
		if receipt, err := c.Increment(ctx, "views/a", 1); err != nil || receipt.Outcome != client.Applied {
			t.Fatal(receipt, err)
		}
		n++
	}
	if got := store.total("views/a"); got != n {
		t.Errorf("views/a is %d, want %d", got, n)
	}
}
