package client_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/plusone-dev/plusone/client"
)

func TestCanceledInDoubt(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	counted := make(chan struct{})
	server := serve(t, store, func(ctx context.Context, apply func() (any, error)) (any, error) {
		_, _ = apply()
		close(counted)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	c := dial(t, server.addr)
	ctx, cancel := context.WithCancel(patient(t))
	go func() {
		<-counted
		cancel()
	}()
	_, err := c.Increment(ctx, "views/a", 1)
	if !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want ErrInDoubt and context.Canceled", err)
	}
	e := asError(t, err)
	if e.Method != "Increment" || e.Attempts != 1 || e.Code != codes.Canceled {
		t.Errorf("got %+v", e)
	}

	// The documented way out: the same change with the same id.
	receipt, err := c.Increment(patient(t), "views/a", 1, client.WithRequestID(e.RequestID))
	if err != nil || receipt.Outcome != client.Duplicate {
		t.Errorf("got %v, %v, want Duplicate", receipt.Outcome, err)
	}
	checkCounted(t, store, "views/a", 1, 2)
}

func TestTimeoutInDoubt(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store, answerNever).addr, client.WithTimeout(500*time.Millisecond))
	_, err := c.BatchIncrement(t.Context(), []client.Entry{{Key: "views/a", Delta: 1}})
	if !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want ErrInDoubt and context.DeadlineExceeded", err)
	}
	checkCounted(t, store, "views/a", 1, 1)
}

// A refusal that follows a lost answer says why the call ended, not that it was not counted.
func TestRefusedAfterLostAnswer(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	server.then(server.loseAnswer, refuseWith(codes.FailedPrecondition, reason("REQUEST_ID_EXPIRED")))
	_, err := dial(t, server.addr).Increment(patient(t), "views/a", 1)
	if !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, client.ErrRequestIDExpired) {
		t.Errorf("got %v, want ErrInDoubt and ErrRequestIDExpired", err)
	}
	checkCounted(t, store, "views/a", 1, 2)
}

func TestUnreachableIsNotInDoubt(t *testing.T) {
	t.Parallel()
	target := "unix://" + filepath.Join(t.TempDir(), "nobody")
	c := dial(t, target, client.WithTimeout(500*time.Millisecond))
	_, err := c.Increment(t.Context(), "views/a", 1)
	if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v, want ErrUnavailable, not in doubt", err)
	}
	if asError(t, err).Attempts < 2 {
		t.Errorf("gave up at once: %v", err)
	}
}

// A server that accepts connections and says nothing keeps attempts waiting for a connection: nothing is
// sent.
func TestSilentServerIsNotInDoubt(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	c := dial(t, listener.Addr().String(), client.WithTimeout(300*time.Millisecond))
	_, err = c.Increment(t.Context(), "views/a", 1)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v, want context.DeadlineExceeded, not in doubt", err)
	}
}

func TestEndedContextSendsNothing(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Increment(ctx, "views/a", 1)
	if !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v, want context.Canceled, not in doubt", err)
	}
	if ids := store.attemptIDs(); len(ids) != 0 {
		t.Errorf("%d attempts arrived", len(ids))
	}
}
