package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auditlog"
	"github.com/plusone-dev/plusone/internal/identity"
)

var adminName = plusonev1.AdminService_ServiceDesc.ServiceName

// scriptedAudit writes down what it is told, or fails.
type scriptedAudit struct {
	err    error
	events []any // auditlog.Action at the begin, the outcome at the end
}

func (a *scriptedAudit) Begin(_ context.Context, action auditlog.Action) (func(string), error) {
	if a.err != nil {
		return nil, a.err
	}
	a.events = append(a.events, action)
	return func(outcome string) { a.events = append(a.events, outcome) }, nil
}

// audited is an interceptor with two methods, one of them of administrators.
func audited(audit AuditLog) *interceptor {
	m := newMetrics()
	for _, service := range []string{adminName, "plusone.v1.CounterService"} {
		m.calls.addAll(map[string]grpc.ServiceInfo{service: {Methods: []grpc.MethodInfo{
			{Name: "Delete"}, {Name: "Import", IsClientStream: true},
		}}})
	}
	log := newCallLog(slog.New(slog.DiscardHandler), false, m)
	return newInterceptor(m, nil, &admission{maxRequests: 10, maxItems: 10, metrics: m}, audit, log, make(chan struct{}))
}

// Calls of administrators are written down, who made them and how they ended, before and after. Others are not.
func TestAdminCallsAreAudited(t *testing.T) {
	t.Parallel()
	audit := &scriptedAudit{}
	i := audited(audit)
	ctx := identity.NewContext(t.Context(), &identity.Identity{Name: "support"})
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4567}})
	req := &plusonev1.IncrementRequest{Key: "views/1", Actor: "al", RequestId: "id"} // has what such a request may have
	handler := func(context.Context, any) (any, error) {
		audit.events = append(audit.events, "done")
		return "answer", nil
	}
	method := "/" + adminName + "/Delete"
	resp, err := i.call(ctx, method, req, handler)
	if resp != "answer" || err != nil {
		t.Errorf("got %v, %v", resp, err)
	}
	want := []any{auditlog.Action{
		Caller: "support", Peer: "10.1.2.3:4567", Method: method, RequestID: "id", Key: "views/1", Actor: "al",
	}, "done", "OK"}
	if !slices.Equal(audit.events, want) {
		t.Errorf("%v, want %v", audit.events, want)
	}
	audit.events = nil
	_, err = i.call(ctx, method, &plusonev1.GetRequest{Key: "not a key"},
		func(context.Context, any) (any, error) { panic("hunter2") })
	want = []any{auditlog.Action{Caller: "support", Peer: "10.1.2.3:4567", Method: method}, "Internal"}
	if status.Code(err) != codes.Internal || !slices.Equal(audit.events, want) {
		t.Errorf("after a panic: %v, %v", audit.events, err)
	}
	audit.events = nil
	if _, err := i.call(ctx, "/plusone.v1.CounterService/Delete", req, handler); err != nil {
		t.Error(err)
	}
	if !slices.Equal(audit.events, []any{"done"}) {
		t.Errorf("another call: %v", audit.events)
	}
}

// The items of an action are those of its request, not what it costs.
func TestItemsOfActions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		req  any
		want auditlog.Action
	}{
		{&plusonev1.DeleteRequest{Key: "views/1", RequestId: "id"}, auditlog.Action{Key: "views/1", RequestID: "id"}},
		{&plusonev1.ForgetActorRequest{Actor: "al"}, auditlog.Action{Actor: "al"}},
		{&plusonev1.ImportRequest{
			Totals: make([]*plusonev1.ImportTotal, 2), Likes: make([]*plusonev1.ImportLike, 3), RequestId: "id",
		}, auditlog.Action{Items: 5, RequestID: "id"}},
	} {
		if got := actionOf(t.Context(), "", tc.req); got != tc.want {
			t.Errorf("%T: %+v, want %+v", tc.req, got, tc.want)
		}
	}
}

// serverStream is a stream of which only the context is asked.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s serverStream) Context() context.Context { return s.ctx }

func TestAdminStreamsAreAudited(t *testing.T) {
	t.Parallel()
	audit := &scriptedAudit{}
	i := audited(audit)
	method := "/" + adminName + "/Import"
	err := i.stream(nil, serverStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error {
		audit.events = append(audit.events, "done")
		return status.Error(codes.NotFound, "x")
	})
	want := []any{auditlog.Action{Method: method}, "done", "NotFound"}
	if status.Code(err) != codes.NotFound || !slices.Equal(audit.events, want) {
		t.Errorf("%v, %v, want %v", audit.events, err, want)
	}
}

// What cannot be written down is not done.
func TestUnauditedCallsAreRefused(t *testing.T) {
	t.Parallel()
	i := audited(&scriptedAudit{err: errors.New("disk full: hunter2")})
	refused := failure{code: codes.Unavailable, reason: "AUDIT_LOG_UNAVAILABLE", retry: true}
	_, err := i.call(t.Context(), "/"+adminName+"/Delete", nil, func(context.Context, any) (any, error) {
		t.Error("it was done")
		return nil, nil
	})
	wantFailure(t, err, refused)
	err = i.stream(nil, serverStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: "/" + adminName + "/Import"}, func(any, grpc.ServerStream) error {
		t.Error("it was done")
		return nil
	})
	wantFailure(t, err, refused)
}
