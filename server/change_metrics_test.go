package server

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// Each change is counted once, by what became of it.
func TestChangesAreCountedByOutcome(t *testing.T) {
	t.Parallel()
	errs := map[string]error{
		"request_id_reused": counter.ErrRequestIDReused, "request_id_expired": counter.ErrRequestIDExpired,
		"request_id_early": counter.ErrRequestIDEarly, "overflow": counter.ErrOverflow, "overloaded": counter.ErrOverloaded,
		"full": counter.ErrFull, "unavailable": counter.ErrUnavailable, "in_doubt": counter.ErrInDoubt, "internal": errDriver,
	}
	outcomes := map[string]counter.Outcome{
		"applied": counter.Applied, "duplicate": counter.Duplicate, "already_counted": counter.AlreadyCounted,
	}
	s := newService(t, &scriptedStore{apply: func(ctx context.Context, c counter.Change) (counter.Receipt, error) {
		if ctx.Err() != nil {
			return counter.Receipt{}, ctx.Err()
		}
		name := c.Entries[0].Key
		return counter.Receipt{Outcome: outcomes[name], AsOf: storeTime}, errs[name]
	}}, Config{})
	want := map[string]float64{"cancelled": 1, "deadline_exceeded": 1}
	for name := range outcomes {
		want[name] = 1
	}
	for name := range errs {
		want[name] = 1
	}
	for name := range want {
		ctx, cancel := context.WithCancel(t.Context())
		switch name {
		case "cancelled":
			cancel()
		case "deadline_exceeded":
			ctx, cancel = context.WithDeadline(ctx, time.Now().Add(-time.Second))
		}
		_, err := incrementMessage(ctx, s, &plusonev1.IncrementRequest{Key: name})
		if _, acknowledged := outcomes[name]; acknowledged != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	want["applied"]++
	if _, err := likeMessage(t.Context(), s, &plusonev1.LikeRequest{Key: "applied", Actor: "a"}); err != nil {
		t.Error(err)
	}
	want["in_doubt"] += 2 // whatever the caller is told to do about it
	for _, action := range []func() error{
		func() error {
			_, err := unlikeMessage(t.Context(), s, &plusonev1.UnlikeRequest{Key: "in_doubt", Actor: "a"})
			return err
		},
		func() error {
			_, err := incrementMessage(t.Context(), s, &plusonev1.IncrementRequest{Key: "in_doubt", RequestId: "id"})
			return err
		},
	} {
		if action() == nil {
			t.Error("a change in doubt succeeded")
		}
	}
	if _, err := incrementMessage(t.Context(), s, &plusonev1.IncrementRequest{}); err == nil { // is no change
		t.Error("no key is a key")
	}
	collected := make(chan prometheus.Metric, 100)
	s.metrics.changes.total.Collect(collected)
	if len(collected) != len(want) {
		t.Errorf("there are %d outcomes, want %d", len(collected), len(want))
	}
	for name, n := range want {
		if got := value(t, s.metrics.changes.total.WithLabelValues(name)); got != n {
			t.Errorf("%s: %v, want %v", name, got, n)
		}
	}
}
