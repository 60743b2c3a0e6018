package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auditlog"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// AuditLog writes down what administrators do. Begin is called before an action, which is not done if it fails, and end
// after it.
type AuditLog interface {
	Begin(ctx context.Context, action auditlog.Action) (end func(outcome string), err error)
}

// audited does an action of an administrator, and writes down that and how it ended.
func (i *interceptor) audited(ctx context.Context, method string, req any, do func() error) error {
	end, err := i.audit.Begin(ctx, actionOf(ctx, method, req))
	if err != nil {
		return &rpcError{status: statusUnaudited, cause: err}
	}
	err = do()
	end(status.Code(err).String())
	return err
}

// auditedUnary is audited for a call without a stream. How it ended includes a panic.
func (i *interceptor) auditedUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	err = i.audited(ctx, info.FullMethod, req, func() (err error) {
		resp, err = i.recoverUnary(ctx, req, info, handler)
		return err
	})
	return resp, err
}

// actionOf is what a call is about to do. The request is nil if it comes as a stream.
func actionOf(ctx context.Context, method string, req any) auditlog.Action {
	a := auditlog.Action{Method: method, RequestID: requestID(req)}
	if who := identity.FromContext(ctx); who != nil {
		a.Caller = who.Name
	}
	if p, ok := peer.FromContext(ctx); ok {
		a.Peer = p.Addr.String()
	}
	if r, ok := req.(interface{ GetKey() string }); ok {
		a.Key = loggable(r.GetKey(), counter.MaxKeyBytes)
	}
	if r, ok := req.(interface{ GetActor() string }); ok {
		a.Actor = loggable(r.GetActor(), counter.MaxActorBytes)
	}
	if r, ok := req.(*plusonev1.ImportRequest); ok {
		a.Items = len(r.Totals) + len(r.Likes)
	}
	return a
}
