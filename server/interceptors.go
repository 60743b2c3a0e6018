package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// interceptor wraps every call: it is counted, its caller let in, admitted, its failure logged, and a panic made an error,
// from the outside in. It is one interceptor, because each one of a chain costs a closure and a piece of stack in each call.
// Calls that are shed are counted but not logged, as logging them would add to the load.
type interceptor struct {
	calls     *calls
	access    *access // nil lets everyone do everything
	admission *admission
	audit     AuditLog // nil writes nothing down
	arrivals  *arrivals
	codec     *codec
	log       *callLog
	// streams are those that are open.
	streams atomic.Int64
	// ending ends streams when it is closed: health watches and reflection last for as long as their clients like, and
	// would hold up a stop. A handler ends when its stream has.
	ending <-chan struct{}

	recoverUnary  grpc.UnaryServerInterceptor
	recoverStream grpc.StreamServerInterceptor
}

func newInterceptor(m *metrics, who *access, in *admission, audit AuditLog, log *callLog, ending <-chan struct{}) *interceptor {
	fromPanic := recovery.WithRecoveryHandler(func(p any) error {
		return &rpcError{status: statusInternal, cause: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
	})
	return &interceptor{
		calls: m.calls, access: who, admission: in, arrivals: newArrivals(m), codec: newCodec(m), audit: audit, log: log, ending: ending,
		recoverUnary: recovery.UnaryServerInterceptor(fromPanic), recoverStream: recovery.StreamServerInterceptor(fromPanic),
	}
}

// options installs the interceptor.
func (i *interceptor) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.UnaryInterceptor(i.unary), grpc.StreamInterceptor(i.stream), grpc.ForceServerCodecV2(i.codec)}
}

// registrar returns what registers services, so that each call meets the interceptor.
func (i *interceptor) registrar(s *grpc.Server) grpc.ServiceRegistrar {
	return &guardedRegistrar{s, i}
}

// guardedRegistrar registers services whose callers are told by their headers, and may not take for ever to send a request.
// The interceptor of a call without a stream comes when its request has been read and decoded, which is too much to do for
// strangers. (An InTapHandle would come first too, but leaves a timer behind for each call that it refuses, for as long as
// the stranger says.)
type guardedRegistrar struct {
	*grpc.Server
	interceptor *interceptor
}

// RegisterService implements grpc.ServiceRegistrar.
func (r *guardedRegistrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	guarded := *desc
	guarded.Methods = slices.Clone(desc.Methods)
	for n, m := range guarded.Methods {
		name := "/" + desc.ServiceName + "/" + m.MethodName
		guarded.Methods[n].Handler = func(srv any, ctx context.Context, decode func(any) error, next grpc.UnaryServerInterceptor,
		) (any, error) {
			if r.interceptor.access != nil {
				var err error
				if ctx, err = r.interceptor.greet(ctx, name); err != nil {
					return nil, err
				}
			}
			return m.Handler(srv, ctx, func(req any) error {
				err := r.interceptor.arrivals.await(ctx, req, decode)
				if err != nil {
					return r.interceptor.notReceived(ctx, name, err)
				}
				return nil
			}, next)
		}
	}
	r.Server.RegisterService(&guarded, service)
}

// greet returns the context of a call with who makes it.
func (i *interceptor) greet(ctx context.Context, name string) (context.Context, error) {
	method := i.calls.methods[name]
	ctx, _, err := i.access.admit(ctx, method.rule)
	if err != nil {
		method.started.Add(1)
		return ctx, i.refused(ctx, name, method, time.Now(), err)
	}
	return ctx, nil
}

// notReceived counts and logs a call without a request: it was none, was too large, or did not arrive.
func (i *interceptor) notReceived(ctx context.Context, name string, err error) error {
	method := i.calls.methods[name]
	method.started.Add(1)
	if errors.Is(err, errNotArrived) {
		method.end(err, 0)
		return err
	}
	return i.refused(ctx, name, method, time.Now(), err)
}

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := i.calls.methods[info.FullMethod]
	method.started.Add(1)
	began := time.Now()
	if i.access != nil {
		known, who, err := i.access.admit(ctx, method.rule)
		if err == nil && who != nil && method.rule.requests {
			err = i.access.check(who, req)
		}
		if err != nil {
			return nil, i.refused(ctx, info.FullMethod, method, began, err)
		}
		ctx = known
	}
	items, limited := itemsOf(req)
	if limited {
		if err := i.admission.enter(int64(items)); err != nil {
			method.end(err, time.Since(began))
			if i.log.debug {
				i.log.called(ctx, info.FullMethod, req, time.Since(began), err)
			}
			return nil, err
		}
	}
	var resp any
	var err error
	if method.admin && i.audit != nil {
		resp, err = i.auditedUnary(ctx, req, info, handler)
	} else {
		resp, err = i.recoverUnary(ctx, req, info, handler)
	}
	if limited {
		i.admission.leave(int64(items))
	}
	took := time.Since(began)
	method.end(err, took)
	if err != nil {
		i.log.callFailed(ctx, info.FullMethod, req, took, err)
	}
	if i.log.debug {
		i.log.called(ctx, info.FullMethod, req, took, err)
	}
	return resp, err
}

// refused counts and logs a call that was not let in.
func (i *interceptor) refused(ctx context.Context, name string, method *methodCalls, began time.Time, err error) error {
	took := time.Since(began)
	method.end(err, took)
	i.log.callFailed(ctx, name, nil, took, err)
	return err
}

func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	method := i.calls.methods[info.FullMethod]
	method.started.Add(1)
	began := time.Now()
	defer i.streams.Add(-1)
	if i.streams.Add(1) > maxOpenStreams {
		i.admission.metrics.shed.WithLabelValues(limitStreams).Inc()
		err := &rpcError{status: statusOverloaded}
		method.end(err, time.Since(began))
		return err
	}
	counted := &countedStream{ServerStream: stream, method: method, first: i.arrivals}
	if i.access != nil {
		ctx, who, err := i.access.admit(stream.Context(), method.rule)
		if err != nil {
			return i.refused(stream.Context(), info.FullMethod, method, began, err)
		}
		counted.ctx = ctx
		if who != nil && method.rule.requests {
			counted.check = func(req any) error { return i.access.check(who, req) }
		}
	}
	handled := make(chan error, 1)
	go func() {
		handle := func() error { return i.recoverStream(srv, counted, info, handler) }
		var err error
		if method.admin && i.audit != nil {
			err = i.audited(counted.Context(), info.FullMethod, nil, handle)
		} else {
			err = handle()
		}
		if err != nil && status.Code(err) != codes.Canceled { // which is how a health watch ends
			i.log.callFailed(stream.Context(), info.FullMethod, nil, time.Since(began), err)
		}
		handled <- err
	}()
	var err error
	select {
	case err = <-handled:
	case <-i.ending:
		err = &rpcError{status: statusStopping}
	}
	took := time.Since(began)
	method.end(err, took)
	if i.log.debug {
		i.log.called(stream.Context(), info.FullMethod, nil, took, err)
	}
	return err
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
	case *plusonev1.ImportRequest:
		return min(len(r.Totals)+len(r.Likes), counter.MaxEntries), true
	case *plusonev1.DeleteRequest, *plusonev1.ForgetActorRequest:
		return counter.MaxListed, true // which they work on at a time
	case pageRequest:
		return max(0, min(pageSize(r), counter.MaxListed)), true
	default:
		return 0, false
	}
}

// enter lets a request in, or says why not. The sums may overshoot for a moment, by requests that are just being
// refused.
func (a *admission) enter(items int64) error {
	if a.requests.Add(1) > a.maxRequests {
		a.requests.Add(-1)
		a.metrics.shed.WithLabelValues(limitRequests).Inc()
		return &rpcError{status: statusOverloaded}
	}
	if a.items.Add(items) > a.maxItems {
		a.leave(items)
		a.metrics.shed.WithLabelValues(limitItems).Inc()
		return &rpcError{status: statusOverloaded}
	}
	return nil
}

// leave takes out a request that was let in.
func (a *admission) leave(items int64) {
	a.items.Add(-items)
	a.requests.Add(-1)
}
