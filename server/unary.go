package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/plusone-dev/plusone/internal/identity"
)

// methodHandler is the generated handler of a method without a stream: it decodes a request and has the service answer it.
type methodHandler = func(srv any, ctx context.Context, decode func(any) error, next grpc.UnaryServerInterceptor) (any, error)

// unaryCall is a call without a stream whose caller may make it. Those that have ended are used again for others, so that a call
// takes no memory of its own.
type unaryCall struct {
	arrival
	interceptor *interceptor
	received    func(any) error   // receive
	handled     grpc.UnaryHandler // handle

	ctx     context.Context
	who     *identity.Identity // nil if it does not matter
	method  *methodCalls
	decode  func(any) error // gRPC's
	handler methodHandler
	next    grpc.UnaryServerInterceptor
	request any // nil until the call is let in
	stage   callStage
	began   time.Duration // when the request had arrived, by the interceptor's clock
	items   int64         // that it was admitted with
}

// callStage is how far a call has come.
type callStage int

const (
	arriving  callStage = iota
	begun               // counted, but not let in
	shed                // because too much is in flight
	admitted            // by the admission, which it has to leave
	unlimited           // let in by itself
)

// guard wraps the handler of a method, so that each call of it meets the interceptor: by its headers, then with its request, and
// with its answer. It is not installed as gRPC's interceptor of such calls. That would come when the request has been read and
// decoded, which is too much to do for strangers, and what it is given is made anew for each call. A handler without an
// interceptor makes none of that.
func (i *interceptor) guard(method *methodCalls, handler methodHandler) methodHandler {
	var next grpc.UnaryServerInterceptor
	if method.admin && i.audit != nil {
		next = i.auditedUnary
	}
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		growStack(false)
		var who *identity.Identity
		if i.access != nil {
			var err error
			if ctx, who, err = i.access.admit(ctx, method.rule); err != nil {
				method.started.Add(1)
				return nil, i.refused(ctx, method, i.now(), err)
			}
		}
		c, ok := i.unaryCalls.Get().(*unaryCall)
		if !ok {
			c = i.newUnaryCall()
		}
		c.ctx, c.who, c.method, c.decode, c.handler, c.next = ctx, who, method, decode, handler, next
		resp, err := i.recoverUnary(ctx, srv, nil, c.handled)
		c.end(err)
		return resp, err
	}
}

func (i *interceptor) newUnaryCall() *unaryCall {
	c := &unaryCall{interceptor: i}
	c.received, c.handled = c.receive, c.handle
	i.arrivals.know(&c.arrival)
	return c
}

// handle has the request received and answered.
func (c *unaryCall) handle(ctx context.Context, srv any) (any, error) {
	return c.handler(srv, ctx, c.received, c.next)
}

// receive receives the request and lets it in, or says why not.
func (c *unaryCall) receive(req any) error {
	i := c.interceptor
	err := i.arrivals.await(c.ctx, &c.arrival, req, c.decode)
	c.begin()
	if err != nil {
		if errors.Is(err, errNotArrived) {
			c.stage = shed
		}
		return err
	}
	if c.who != nil && c.method.rule.requests {
		if err := i.access.check(c.who, req); err != nil {
			return err
		}
	}
	c.request, c.stage = req, unlimited
	if items, limited := itemsOf(req); limited {
		if err := i.admission.enter(int64(items)); err != nil {
			c.stage = shed
			return err
		}
		c.items, c.stage = int64(items), admitted
	}
	return nil
}

// begin counts the call.
func (c *unaryCall) begin() {
	c.method.started.Add(1)
	c.began, c.stage = c.interceptor.now(), begun
}

// end counts and logs the end of the call, which is not used after that.
func (c *unaryCall) end(err error) {
	i := c.interceptor
	if c.stage == arriving { // something panicked before the request was there
		c.begin()
	}
	if c.stage == admitted {
		i.admission.leave(c.items)
	}
	took := i.now() - c.began
	c.method.end(err, took)
	if err != nil && c.stage != shed {
		i.log.callFailed(c.ctx, c.method.name, c.request, took, err)
	}
	if i.log.debug && c.stage != begun {
		i.log.called(c.ctx, c.method.name, c.request, took, err)
	}
	if c.reusable() {
		c.ctx, c.who, c.decode, c.request, c.stage = nil, nil, nil, nil, arriving
		i.unaryCalls.Put(c)
	}
}
