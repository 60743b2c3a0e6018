package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
)

func TestTypedErrors(t *testing.T) {
	t.Parallel()
	sentinels := []error{
		client.ErrInDoubt, client.ErrInvalid, client.ErrRequestIDReused, client.ErrRequestIDExpired,
		client.ErrRequestIDEarly, client.ErrOverflow, client.ErrUnavailable, client.ErrOverloaded, client.ErrRateLimited,
		client.ErrClosed, client.ErrUnauthenticated, client.ErrPermissionDenied, context.Canceled, context.DeadlineExceeded,
	}
	for _, test := range []struct {
		code   codes.Code
		reason string
		want   []error
	}{
		{codes.InvalidArgument, "INVALID_REQUEST", []error{client.ErrInvalid}},
		{codes.InvalidArgument, "REQUEST_ID_EARLY", []error{client.ErrInvalid, client.ErrRequestIDEarly}},
		{codes.AlreadyExists, "REQUEST_ID_REUSED", []error{client.ErrRequestIDReused}},
		{codes.FailedPrecondition, "REQUEST_ID_EXPIRED", []error{client.ErrRequestIDExpired}},
		{codes.OutOfRange, "TOTAL_OVERFLOW", []error{client.ErrOverflow}},
		{codes.Unauthenticated, "UNAUTHENTICATED", []error{client.ErrUnauthenticated}},
		{codes.PermissionDenied, "NAMESPACE_DENIED", []error{client.ErrPermissionDenied}},
		{codes.ResourceExhausted, "OVERLOADED", []error{client.ErrOverloaded}},
		{codes.ResourceExhausted, "STORE_FULL", []error{client.ErrOverloaded}},
		{codes.ResourceExhausted, "RATE_LIMITED", []error{client.ErrOverloaded, client.ErrRateLimited}},
		{codes.Unavailable, "GUARD_UNAVAILABLE", []error{client.ErrUnavailable}},
		{codes.Unavailable, "STORE_UNAVAILABLE", []error{client.ErrUnavailable}},
		{codes.Unavailable, "OUTCOME_UNKNOWN", []error{client.ErrUnavailable, client.ErrInDoubt}},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			store := newFakeStore()
			// Asking for an hour's patience ends the call at once, also where a retry would help.
			details := []*errdetails.BadRequest_FieldViolation{{Field: "key", Description: "is empty"}}
			server := serve(t, store, refuseWith(test.code, reason(test.reason), retryIn(time.Hour),
				&errdetails.BadRequest{FieldViolations: details}))
			_, err := dial(t, server.addr).Increment(patient(t), "views/a", 1)
			for _, sentinel := range sentinels {
				if got := errors.Is(err, sentinel); got != slices.Contains(test.want, sentinel) {
					t.Errorf("errors.Is(err, %q) is %v: %v", sentinel, got, err)
				}
			}
			e := asError(t, err)
			want := client.Violation{Field: "key", Description: "is empty"}
			if e.Code != test.code || e.Reason != test.reason || e.Message != "refused" ||
				e.RetryAfter != time.Hour || e.Attempts != 1 || !slices.Equal(e.Violations, []client.Violation{want}) {
				t.Errorf("got %+v", e)
			}
			checkCounted(t, store, "views/a", 0, 1)
			if ids := store.attemptIDs(); e.RequestID != ids[0] {
				t.Errorf("error is about %q, the attempt was about %q", e.RequestID, ids[0])
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	server := serve(t, newFakeStore(), refuseWith(codes.InvalidArgument, reason("INVALID_REQUEST"),
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "key", Description: "is empty"}}}))
	_, err := dial(t, server.addr).Get(patient(t), "")
	const want = "plusone: Get: InvalidArgument (INVALID_REQUEST): refused; key: is empty"
	if err == nil || err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

// An answer that breaks the contract is an error, never a made-up number or outcome.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	answer := func(resp any) fault {
		return func(context.Context, func() (any, error)) (any, error) { return resp, nil }
	}
	server := serve(t, newFakeStore(),
		answer(&plusonev1.IncrementResponse{}),
		answer(&plusonev1.BatchIncrementResponse{Outcome: 99}),
		answer(&plusonev1.GetResponse{}),
		answer(&plusonev1.GetResponse{Count: &plusonev1.Count{Key: "b"}}),
		answer(&plusonev1.BatchGetResponse{Counts: []*plusonev1.Count{{Key: "a"}}}),
		answer(&plusonev1.BatchGetResponse{Counts: []*plusonev1.Count{{Key: "b"}, {Key: "a"}}}),
	)
	c := dial(t, server.addr)
	ctx := patient(t)
	for i, call := range []func() error{
		func() error { _, err := c.Increment(ctx, "a", 1); return err },
		func() error { _, err := c.BatchIncrement(ctx, []client.Entry{{Key: "a", Delta: 1}}); return err },
		func() error { _, err := c.Get(ctx, "a"); return err },
		func() error { _, err := c.Get(ctx, "a"); return err },
		func() error { _, err := c.BatchGet(ctx, []string{"a", "b"}); return err },
		func() error { _, err := c.BatchGet(ctx, []string{"a", "b"}); return err },
	} {
		err := call()
		if e := asError(t, err); e.Code != codes.Internal {
			t.Errorf("call %d: got %v, want Internal", i, err)
		}
		if change := i < 2; errors.Is(err, client.ErrInDoubt) != change {
			t.Errorf("call %d: in doubt is %v: %v", i, !change, err)
		}
	}
}

func TestUnsendableRequests(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	ctx := patient(t)
	const bad = "\xff"
	huge := strings.Repeat("x", 10_000*407+131)
	for _, test := range []struct {
		field string
		call  func() error
	}{
		{"key", func() error { _, err := c.Increment(ctx, bad, 1); return err }},
		{"actor", func() error { _, err := c.Increment(ctx, "a", 1, client.OncePer(bad, time.Hour)); return err }},
		{"actor", func() error { _, err := c.Increment(ctx, "a", 1, client.ByActor(bad)); return err }},
		{"request_id", func() error { _, err := c.Increment(ctx, "a", 1, client.WithRequestID(bad)); return err }},
		{"", func() error { _, err := c.Increment(ctx, huge, 1); return err }},
		{"entries[1].key", func() error {
			_, err := c.BatchIncrement(ctx, []client.Entry{{Key: "a", Delta: 1}, {Key: bad, Delta: 1}})
			return err
		}},
		{"request_id", func() error {
			_, err := c.BatchIncrement(ctx, []client.Entry{{Key: "a", Delta: 1}}, client.WithRequestID(bad))
			return err
		}},
		{"key", func() error { _, err := c.Get(ctx, bad); return err }},
		{"keys[1]", func() error { _, err := c.BatchGet(ctx, []string{"a", bad}); return err }},
		{"", func() error { _, err := c.BatchGet(ctx, []string{huge}); return err }},
	} {
		err := test.call()
		e := asError(t, err)
		if !errors.Is(err, client.ErrInvalid) || errors.Is(err, client.ErrInDoubt) ||
			len(e.Violations) != 1 || e.Violations[0].Field != test.field || e.Attempts != 0 {
			t.Errorf("%q: got %v", test.field, err)
		}
	}
	if len(store.attemptIDs()) != 0 {
		t.Error("an unsendable request arrived")
	}
}
