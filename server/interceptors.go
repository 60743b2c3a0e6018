package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// interceptors returns the server options that wrap every call, outermost first. Calls that are shed are
// counted but not logged, as logging them would add to the load. Streams end when ending is closed.
func interceptors(m *metrics, in *admission, log *callLog, ending <-chan struct{}) []grpc.ServerOption {
	fromPanic := recovery.WithRecoveryHandler(func(p any) error {
		return &rpcError{status: statusInternal, cause: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
	})
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(
			m.calls.UnaryServerInterceptor(), in.unary, log.unary, recovery.UnaryServerInterceptor(fromPanic)),
		grpc.ChainStreamInterceptor(
			m.calls.StreamServerInterceptor(), endStreams(ending), log.stream, recovery.StreamServerInterceptor(fromPanic)),
	}
}

// endStreams ends streams when ending is closed: health watches and reflection last for as long as their clients
// like, and would hold up a stop. A handler ends when its stream has.
func endStreams(ending <-chan struct{}) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		handled := make(chan error, 1)
		go func() { handled <- handler(srv, stream) }()
		select {
		case err := <-handled:
			return err
		case <-ending:
			return &rpcError{status: statusStopping}
		}
	}
}

// admission bounds the requests that are worked on at once, and their items. Calls of other services, such as
// health checks, are always let in.
type admission struct {
	requests, items       atomic.Int64
	maxRequests, maxItems int64
	metrics               *metrics
}

// itemsOf is how many items a request costs: the entries or keys that it names, or the likes that it asks for. What
// is beyond a limit is refused by the checks, not here. It is false for requests of other services.
func itemsOf(req any) (items int, ok bool) {
	switch r := req.(type) {
	case *plusonev1.IncrementRequest, *plusonev1.GetRequest, *plusonev1.LikeRequest, *plusonev1.UnlikeRequest:
		return 1, true
	case *plusonev1.BatchIncrementRequest:
		return min(len(r.Entries), counter.MaxEntries), true
	case *plusonev1.BatchGetRequest:
		return min(len(r.Keys), counter.MaxReadKeys), true
	case *plusonev1.BatchGetLikesRequest:
		return min(len(r.Keys), counter.MaxReadKeys), true
	case pageRequest:
		return max(0, min(pageSize(r), counter.MaxListed)), true
	default:
		return 0, false
	}
}

func (a *admission) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	n, ok := itemsOf(req)
	if !ok {
		return handler(ctx, req)
	}
	items := int64(n)
	// The sums may overshoot for a moment, by requests that are just being refused.
	defer a.requests.Add(-1)
	if a.requests.Add(1) > a.maxRequests {
		a.metrics.shed.WithLabelValues("requests").Inc()
		return nil, &rpcError{status: statusOverloaded}
	}
	defer a.items.Add(-items)
	if a.items.Add(items) > a.maxItems {
		a.metrics.shed.WithLabelValues("items").Inc()
		return nil, &rpcError{status: statusOverloaded}
	}
	return handler(ctx, req)
}
