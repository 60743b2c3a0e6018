package client

import (
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// Defaults of the options of Dial.
const (
	// DefaultTimeout is for a caller who did not think of one: long enough to outlast the restart of a
	// server, short enough for a request that a person waits for.
	DefaultTimeout = 5 * time.Second
	// DefaultAttemptTimeout leaves room for a second server within DefaultTimeout, and is far above what
	// a healthy server takes.
	DefaultAttemptTimeout = 2 * time.Second
	// DefaultDedupeWindow is that of the server.
	DefaultDedupeWindow = 5 * time.Minute
)

// Option adjusts a Client.
type Option func(*config)

type config struct {
	credentials    credentials.TransportCredentials
	timeout        time.Duration
	attemptTimeout time.Duration
	dedupeWindow   time.Duration
	dialOptions    []grpc.DialOption
}

func newConfig(opts []Option) (config, error) {
	c := config{
		credentials:    insecure.NewCredentials(),
		timeout:        DefaultTimeout,
		attemptTimeout: DefaultAttemptTimeout,
		dedupeWindow:   DefaultDedupeWindow,
	}
	for _, opt := range opts {
		opt(&c)
	}
	switch {
	case c.credentials == nil:
		return config{}, errors.New("plusone: transport credentials are nil")
	case c.timeout <= 0:
		return config{}, errors.New("plusone: timeout must be above 0")
	case c.attemptTimeout <= 0:
		return config{}, errors.New("plusone: attempt timeout must be above 0")
	case c.dedupeWindow <= 0:
		return config{}, errors.New("plusone: dedupe window must be above 0")
	}
	return c, nil
}

// WithTransportCredentials secures connections, usually by credentials.NewTLS. Without it they are in plain
// text.
func WithTransportCredentials(creds credentials.TransportCredentials) Option {
	return func(c *config) { c.credentials = creds }
}

// WithTimeout limits a call whose context has no deadline, retries included. The default is
// DefaultTimeout.
func WithTimeout(d time.Duration) Option {
	return func(c *config) { c.timeout = d }
}

// WithAttemptTimeout limits one attempt of a call: when it runs out, the call is retried, by round robin at
// another server. The default is DefaultAttemptTimeout.
func WithAttemptTimeout(d time.Duration) Option {
	return func(c *config) { c.attemptTimeout = d }
}

// WithDedupeWindow tells the server's dedupe window, if that is not DefaultDedupeWindow. A call retries its
// request id for at most four fifths of it.
func WithDedupeWindow(d time.Duration) Option {
	return func(c *config) { c.dedupeWindow = d }
}

// WithDialOptions passes options on to gRPC, for example per-call credentials, interceptors or a stats
// handler. They come after the client's own and so override them, save that retries of a service config
// stay off. Interceptors see every attempt, and must pass their call options on: by them the client learns
// whether an attempt was sent, and so whether a failure is in doubt.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(c *config) { c.dialOptions = append(c.dialOptions, opts...) }
}

// IncrementOption adjusts one Increment.
type IncrementOption interface {
	applyIncrement(*plusonev1.IncrementRequest)
}

// BatchOption adjusts one BatchIncrement.
type BatchOption interface {
	applyBatch(*plusonev1.BatchIncrementRequest)
}

// LikeOption adjusts one Like or Unlike.
type LikeOption interface {
	applyLike(*likeOptions)
}

type likeOptions struct{ requestID string }

// ChangeOption adjusts any change.
type ChangeOption interface {
	IncrementOption
	BatchOption
	LikeOption
}

// ReadOption adjusts one Get or BatchGet.
type ReadOption func(*readOptions)

type readOptions struct {
	maxAge  *durationpb.Duration
	minAsOf *timestamppb.Timestamp
}

func newReadOptions(opts []ReadOption) readOptions {
	var r readOptions
	for _, opt := range opts {
		opt(&r)
	}
	return r
}

type requestID string

func (id requestID) applyIncrement(r *plusonev1.IncrementRequest)  { r.RequestId = string(id) }
func (id requestID) applyBatch(r *plusonev1.BatchIncrementRequest) { r.RequestId = string(id) }
func (id requestID) applyLike(o *likeOptions)                      { o.requestID = string(id) }

// WithRequestID names the change, in place of the id that the client would make: 1 to 128 bytes of
// printable UTF-8 without spaces, a UUIDv7 by preference. Use it to repeat a change that is in doubt, or
// where the change has a name of its own, such as the id of an event that may be delivered twice. A server
// knows an id for its dedupe window only. An empty id is as none.
func WithRequestID(id string) ChangeOption { return requestID(id) }

type byActor string

func (a byActor) applyIncrement(r *plusonev1.IncrementRequest) { r.Actor = string(a) }

// ByActor names who acts (1 to 128 bytes, a user id for example), for the policies of the server: how often an actor may
// change what, who must not, and where each change must name its actor.
func ByActor(actor string) IncrementOption { return byActor(actor) }

type oncePer struct {
	actor string
	per   time.Duration
}

func (o oncePer) applyIncrement(r *plusonev1.IncrementRequest) {
	r.Actor = o.actor
	r.OncePer = durationpb.New(o.per)
}

// OncePer counts the actor (1 to 128 bytes, a user id for example) at most once for the key in each period
// of this length: whole milliseconds, at most 7 days. Periods are aligned to the Unix epoch in UTC, so 24h
// is a UTC day. A change that the actor had made before has the outcome AlreadyCounted.
func OncePer(actor string, per time.Duration) IncrementOption { return oncePer{actor, per} }

// MaxAge accepts an answer that is up to d old. The server's default is 5 s.
func MaxAge(d time.Duration) ReadOption {
	return func(r *readOptions) { r.maxAge = durationpb.New(d) }
}

// Fresh asks the store now, past all caches: MaxAge(0).
func Fresh() ReadOption { return MaxAge(0) }

// MinAsOf asks for an answer no older than the moment t of the store's clock: pass the AsOf of a receipt to read
// your own write. A moment more than 10 s ahead of the store's clock is refused. The zero time asks for nothing.
func MinAsOf(t time.Time) ReadOption {
	return func(r *readOptions) {
		r.minAsOf = nil
		if !t.IsZero() {
			r.minAsOf = timestamppb.New(t)
		}
	}
}
