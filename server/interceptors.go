package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
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
// from the outside in. It is one, because each one of a chain costs a closure and a piece of stack in each call.
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

	start      time.Time // of its clock
	unaryCalls sync.Pool // of those that have ended

	recoverUnary  grpc.UnaryServerInterceptor
	recoverStream grpc.StreamServerInterceptor
}

func newInterceptor(m *metrics, who *access, in *admission, audit AuditLog, log *callLog, ending <-chan struct{}) *interceptor {
	fromPanic := recovery.WithRecoveryHandler(func(p any) error {
		return &rpcError{status: statusInternal, cause: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
	})
	return &interceptor{
		calls: m.calls, access: who, admission: in, arrivals: newArrivals(m), codec: newCodec(m), audit: audit, log: log, ending: ending,
		start: time.Now(), recoverUnary: recovery.UnaryServerInterceptor(fromPanic), recoverStream: recovery.StreamServerInterceptor(fromPanic),
	}
}

// options installs the interceptor, for calls with a stream. For others the registrar does.
func (i *interceptor) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.StreamInterceptor(i.stream), grpc.ForceServerCodecV2(i.codec)}
}

// registrar returns what registers services, so that each call meets the interceptor.
func (i *interceptor) registrar(s *grpc.Server) grpc.ServiceRegistrar {
	return &guardedRegistrar{s, i}
}

// guardedRegistrar guards the methods of the services that it registers. (An InTapHandle would come before the request too, but
// leaves a timer behind for each call that it refuses, for as long as the stranger says.)
type guardedRegistrar struct {
	*grpc.Server
	interceptor *interceptor
}

// RegisterService implements grpc.ServiceRegistrar.
func (r *guardedRegistrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	guarded := *desc
	guarded.Methods = slices.Clone(desc.Methods)
	for n, m := range guarded.Methods {
		method := r.interceptor.calls.add(desc.ServiceName, grpc.MethodInfo{Name: m.MethodName})
		guarded.Methods[n].Handler = r.interceptor.guard(method, m.Handler)
	}
	r.Server.RegisterService(&guarded, service)
}

// now is the clock of calls: monotonic, and only good for differences.
func (i *interceptor) now() time.Duration { return time.Since(i.start) }

// refused counts and logs a call that was not let in.
func (i *interceptor) refused(ctx context.Context, method *methodCalls, began time.Duration, err error) error {
	took := i.now() - began
	method.end(err, took)
	i.log.callFailed(ctx, method.name, nil, took, err)
	return err
}

func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	method := i.calls.methods[info.FullMethod]
	method.started.Add(1)
	began := i.now()
	defer i.streams.Add(-1)
	if i.streams.Add(1) > maxOpenStreams {
		i.admission.metrics.shed.WithLabelValues(limitStreams).Inc()
		err := &rpcError{status: statusOverloaded}
		method.end(err, i.now()-began)
		return err
	}
	counted := &countedStream{ServerStream: stream, method: method, first: i.arrivals}
	if i.access != nil {
		ctx, who, err := i.access.admit(stream.Context(), method.rule)
		if err != nil {
			return i.refused(stream.Context(), method, began, err)
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
			i.log.callFailed(stream.Context(), info.FullMethod, nil, i.now()-began, err)
		}
		handled <- err
	}()
	var err error
	select {
	case err = <-handled:
	case <-i.ending:
		err = &rpcError{status: statusStopping}
	}
	took := i.now() - began
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
