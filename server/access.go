package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// Authenticator tells who makes a call, by the values of its authorization metadata, and by the verified certificate of
// its connection, which is nil if there is none. An error is an identity.RefusalError, or the Authenticator's own fault. It is
// called concurrently, for every call, and must return soon.
type Authenticator interface {
	Authenticate(ctx context.Context, authorization []string, certificate *x509.Certificate) (*identity.Identity, error)
}

// Labels of refusals beside those of identity.RefusalError.
const (
	deniedScope     = "missing_scope"
	deniedNamespace = "namespace_denied"
	deniedActor     = "actor_denied"
)

// rule says who may call a method.
type rule struct {
	// public lets in whoever calls.
	public bool
	// scope is what a caller needs; 0 asks for any identity.
	scope identity.Scope
	// requests says that what they are about is checked.
	requests bool
}

// adminPrefix is that of the methods that need the scope admin.
var adminPrefix = "/" + plusonev1.AdminService_ServiceDesc.ServiceName + "/"

var methodScopes = map[string]identity.Scope{
	plusonev1.CounterService_Increment_FullMethodName:      identity.Write,
	plusonev1.CounterService_BatchIncrement_FullMethodName: identity.Write,
	plusonev1.CounterService_Like_FullMethodName:           identity.Write,
	plusonev1.CounterService_Unlike_FullMethodName:         identity.Write,
	plusonev1.CounterService_Get_FullMethodName:            identity.Read,
	plusonev1.CounterService_BatchGet_FullMethodName:       identity.Read,
	plusonev1.CounterService_BatchGetLikes_FullMethodName:  identity.Read,
	plusonev1.ReportService_ListLikers_FullMethodName:      identity.Report,
	plusonev1.ReportService_ListLiked_FullMethodName:       identity.Report,
}

// ruleOf returns the rule of a method, or nil for one that nobody may call, as nobody has thought of it.
func ruleOf(method string, privateHealth bool) *rule {
	if scope, ok := methodScopes[method]; ok {
		return &rule{scope: scope, requests: true}
	}
	switch {
	case strings.HasPrefix(method, adminPrefix):
		return &rule{scope: identity.Admin, requests: true}
	case strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/"):
		return &rule{public: !privateHealth}
	case strings.HasPrefix(method, "/grpc.reflection."):
		return &rule{}
	default:
		return nil
	}
}

// access decides whether a call is let in.
type access struct {
	authenticator Authenticator
	metrics       *metrics
}

// admit returns the context of a call with who makes it, nil if that does not matter, and an error if the method is not for
// him.
func (a *access) admit(ctx context.Context, r *rule) (context.Context, *identity.Identity, error) {
	if r != nil && r.public {
		return ctx, nil, nil
	}
	who := identity.FromContext(ctx)
	if who == nil {
		var err error
		if who, err = a.identify(ctx); err != nil {
			return ctx, nil, a.refuse(err)
		}
		ctx = identity.NewContext(ctx, who)
	}
	if r == nil || !who.May(r.scope) {
		return ctx, nil, a.deny(deniedScope, statusMissingScope)
	}
	return ctx, who, nil
}

// identify asks the authenticator. What it reads comes from strangers, so a panic ends one call only.
func (a *access) identify(ctx context.Context) (who *identity.Identity, err error) {
	defer func() {
		if p := recover(); p != nil {
			who, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	authorization := metadata.ValueFromIncomingContext(ctx, "authorization")
	var certificate *x509.Certificate
	if len(authorization) == 0 {
		certificate = clientCertificate(ctx)
	}
	return a.authenticator.Authenticate(ctx, authorization, certificate)
}

// refuse maps an error of the authenticator, and counts it.
func (a *access) refuse(err error) error {
	var refusal identity.RefusalError
	if !errors.As(err, &refusal) {
		return &rpcError{status: statusInternal, cause: err}
	}
	a.metrics.refused.WithLabelValues(string(refusal)).Inc()
	return &rpcError{status: statusUnauthenticated, cause: refusal}
}

// clientCertificate is the certificate of the client, if TLS has verified one.
func clientCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// check returns why a request is not for its caller, or nil.
func (a *access) check(who *identity.Identity, req any) error {
	l := limits{who: who, everywhere: slices.Contains(who.Namespaces, "*")}
	if l.everywhere && who.Actor == "" {
		return nil
	}
	l.request(req)
	switch {
	case l.foreignNamespace:
		return a.deny(deniedNamespace, statusNamespaceDenied)
	case l.foreignActor:
		return a.deny(deniedActor, statusActorDenied)
	}
	return nil
}

func (a *access) deny(reason string, st *status.Status) error {
	a.metrics.refused.WithLabelValues(reason).Inc()
	return &rpcError{status: st}
}

// limits finds what of a request is beyond the limits of an identity.
type limits struct {
	who        *identity.Identity
	everywhere bool // it may touch all namespaces

	named     bool   // a namespace was seen
	namespace string // the last one that it may touch

	foreignNamespace, foreignActor bool
}

// request looks at all keys and actors of a request.
func (l *limits) request(req any) {
	switch r := req.(type) {
	case *plusonev1.IncrementRequest:
		l.key(r.Key)
		l.actor(r.Actor)
	case *plusonev1.BatchIncrementRequest:
		for _, e := range r.Entries {
			l.key(e.GetKey())
		}
	case *plusonev1.LikeRequest:
		l.key(r.Key)
		l.actor(r.Actor)
	case *plusonev1.UnlikeRequest:
		l.key(r.Key)
		l.actor(r.Actor)
	case *plusonev1.GetRequest:
		l.key(r.Key)
	case *plusonev1.BatchGetRequest:
		l.keys(r.Keys)
	case *plusonev1.BatchGetLikesRequest:
		l.keys(r.Keys)
		l.actor(r.Actor)
	case *plusonev1.ListLikersRequest:
		l.key(r.Key)
	case *plusonev1.ListLikedRequest: // what it lists is cut to the namespaces of the caller
		l.actor(r.Actor)
	case proto.Message:
		l.message(r.ProtoReflect())
		// What names no namespace is about all of them.
		l.foreignNamespace = l.foreignNamespace || !l.named && !l.everywhere
	default:
		l.foreignNamespace = true
	}
}

// message looks at the fields of any message. It is for requests that are rare.
func (l *limits) message(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		visit := func(v protoreflect.Value) {
			switch field.Kind() {
			case protoreflect.StringKind:
				l.field(string(field.Name()), v.String())
			case protoreflect.MessageKind, protoreflect.GroupKind:
				l.message(v.Message())
			}
		}
		switch {
		case field.IsMap():
			if field.MapValue().Kind() == protoreflect.MessageKind {
				value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					l.message(v.Message())
					return true
				})
			}
		case field.IsList():
			for i := range value.List().Len() {
				visit(value.List().Get(i))
			}
		default:
			visit(value)
		}
		return true
	})
}

func (l *limits) field(name, value string) {
	switch name {
	case "key", "keys":
		l.key(value)
	case "namespace", "namespaces":
		l.touch(value)
	case "actor", "actors":
		l.actor(value)
	}
}

func (l *limits) keys(keys []string) {
	for _, key := range keys {
		l.key(key)
	}
}

func (l *limits) key(key string) {
	if !l.everywhere {
		l.touch(counter.Namespace(key))
	}
}

// touch looks at a namespace, which is often that of the key before.
func (l *limits) touch(namespace string) {
	if l.named && namespace == l.namespace {
		return
	}
	if !l.everywhere && !l.who.Touches(namespace) {
		l.foreignNamespace = true
		l.named = true
		return
	}
	l.named, l.namespace = true, namespace
}

// actor looks at an actor that a request names. One that names none is let in: it acts for nobody.
func (l *limits) actor(actor string) {
	l.foreignActor = l.foreignActor || l.who.Actor != "" && actor != "" && actor != l.who.Actor
}
