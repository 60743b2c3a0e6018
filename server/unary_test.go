package server

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// call makes a call without a stream, as gRPC would, of a method with this handler.
func (i *interceptor) call(ctx context.Context, method string, req any, handler grpc.UnaryHandler) (any, error) {
	return i.guard(i.calls.methods[method], generated(method, req, handler))(nil, ctx, func(any) error { return nil }, nil)
}

// generated is the handler that is generated for a method, of which each request is this one.
func generated(method string, req any, handler grpc.UnaryHandler) methodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, next grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(req); err != nil {
			return nil, err
		}
		if next == nil {
			return handler(ctx, req)
		}
		return next(ctx, req, &grpc.UnaryServerInfo{FullMethod: method}, handler)
	}
}

// However a call ends, it is counted once, has left the admission, and leaves nothing behind for the call that uses its memory next.
func TestCallsForget(t *testing.T) {
	t.Parallel()
	i := start(t, &scriptedStore{}, Config{MaxInFlight: 1}).server.calls
	method := i.calls.methods[plusonev1.CounterService_Get_FullMethodName]
	arrives := func(any) error { return nil }
	answers := func(context.Context, any) (any, error) { return "answer", nil }
	for _, tc := range []struct {
		name   string
		decode func(any) error
		handle grpc.UnaryHandler
		full   bool // the admission is
		want   codes.Code
	}{
		{name: "answered", decode: arrives, handle: answers, want: codes.OK},
		{name: "failed", decode: arrives, handle: func(context.Context, any) (any, error) { return nil, errNotArrived }, want: codes.ResourceExhausted},
		{name: "panicked", decode: arrives, handle: func(context.Context, any) (any, error) { panic("hunter2") }, want: codes.Internal},
		{name: "panicked before", decode: func(any) error { panic("hunter2") }, handle: answers, want: codes.Internal},
		{name: "shed", decode: arrives, handle: answers, full: true, want: codes.ResourceExhausted},
		{name: "not a request", decode: func(call any) error {
			a, ok := call.(*arrival)
			if ok {
				a.fault = &rpcError{status: statusUndecodable}
			}
			return nil
		}, handle: answers, want: codes.InvalidArgument},
	} {
		if tc.full {
			i.admission.requests.Add(1)
		}
		began, ended := method.started.Load(), method.handled[tc.want].Load()
		c := i.newUnaryCall()
		s := &slowStream{arrived: make(chan struct{})}
		c.ctx, c.method, c.decode = grpc.NewContextWithServerTransportStream(t.Context(), s), method, tc.decode
		c.handler = generated(method.name, &plusonev1.GetRequest{Key: "k"}, tc.handle)
		_, err := i.recoverUnary(c.ctx, nil, nil, c.handled)
		c.end(err)
		if sentCode(err) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
		if method.started.Load() != began+1 || method.handled[tc.want].Load() != ended+1 {
			t.Errorf("%s: not counted once", tc.name)
		}
		if tc.full {
			i.admission.requests.Add(-1)
		}
		if i.admission.requests.Load() != 0 || i.admission.items.Load() != 0 {
			t.Errorf("%s: it is still in flight", tc.name)
		}
		if state := c.state.Load(); state != idle || c.ctx != nil || c.who != nil || c.decode != nil || c.stage != arriving ||
			c.arrival.request != nil || c.request != nil || c.stream != nil || c.fault != nil {
			t.Errorf("%s: it left %+v", tc.name, c)
		}
	}
}
