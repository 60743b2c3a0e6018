package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/stats"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/guard"
)

// Defaults of Config.
const (
	DefaultMaxDelta       = 1_000_000_000_000
	DefaultRequestTimeout = 5 * time.Second
	DefaultCacheBytes     = 64 << 20
	DefaultMaxInFlight    = 50_000
	// DefaultMaxInFlightItems is 50 batches of the largest size: some 300 MB if their keys are the longest
	// there are.
	DefaultMaxInFlightItems = 500_000
)

// Config is how a Server is set. The zero value of every field means its default.
type Config struct {
	// Logger takes failed calls. The default is slog.Default().
	Logger *slog.Logger
	// Registry takes the server's metrics, and is what /metrics shows. The default is an empty one.
	Registry *prometheus.Registry
	// Healthy is asked by /healthz, at most 2 s long: nil is healthy. It may be called concurrently. The
	// default is always healthy.
	Healthy func(ctx context.Context) error
	// Tracing records spans of calls, each with what the change waited for. The default records none, and costs nothing.
	Tracing stats.Handler
	// Audit writes down calls of AdminService, none of which is done without. The default writes nothing down.
	Audit AuditLog
	// Mode is shown by /healthz: how the server counts. The default shows none.
	Mode string

	// TLS secures gRPC connections. The default is plain text.
	TLS *tls.Config
	// Authenticator tells who calls, and so what a call may do. The default lets everyone do everything.
	Authenticator Authenticator
	// PrivateHealth asks for an identity for health checks over gRPC too. /healthz is open in any case.
	PrivateHealth bool
	// NoReflection leaves out the service that tells what methods there are.
	NoReflection bool
	// Policies say what may count in which namespace. The default lets everything count. A Limiter must be there too, and a
	// Guard if policies ask for one: without it, what it must allow is refused.
	Policies Policies
	Limiter  Limiter
	Guard    guard.Guard
	// Tickets says that the store redeems tickets of the Limiter, if that is a TicketLimiter.
	Tickets bool
	// Denied knows actors whose changes must not count. The default knows none.
	Denied DenyList
	// Admin is what AdminService works on. The default serves none.
	Admin *Admin

	// MaxDelta is the largest |delta| of an increment or batch entry.
	MaxDelta int64
	// RequestTimeout is how long the store may take for a request, also if the caller would wait longer.
	RequestTimeout time.Duration
	// CacheBytes bounds the memory of the count cache. It also bounds the number of its entries, each of
	// which is counted with its overhead of half a kilobyte.
	CacheBytes int64
	// MaxInFlight bounds the requests that are worked on at once. Further ones are refused.
	MaxInFlight int
	// MaxInFlightItems bounds the batch entries, keys and listed likes of the requests that are worked on at
	// once, and with them their memory. Further requests are refused. At least one largest batch must fit.
	MaxInFlightItems int
}

// withDefaults returns c with its zero fields set, or what is wrong with c.
func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Healthy == nil {
		c.Healthy = func(context.Context) error { return nil }
	}
	c.MaxDelta = cmp.Or(c.MaxDelta, DefaultMaxDelta)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, DefaultRequestTimeout)
	c.CacheBytes = cmp.Or(c.CacheBytes, DefaultCacheBytes)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, DefaultMaxInFlight)
	c.MaxInFlightItems = cmp.Or(c.MaxInFlightItems, DefaultMaxInFlightItems)

	switch {
	case c.Policies != nil && c.Limiter == nil:
		return c, errors.New("policies need a limiter")
	case c.MaxDelta < 1:
		return c, fmt.Errorf("max delta must be positive, not %d", c.MaxDelta)
	case c.RequestTimeout < time.Millisecond:
		return c, fmt.Errorf("request timeout must be at least 1ms, not %v", c.RequestTimeout)
	case c.CacheBytes < 0:
		return c, fmt.Errorf("cache size must be positive, not %d bytes", c.CacheBytes)
	case c.MaxInFlight < 1:
		return c, fmt.Errorf("max requests in flight must be positive, not %d", c.MaxInFlight)
	case c.MaxInFlightItems < counter.MaxEntries:
		return c, fmt.Errorf("max items in flight must be at least %d, one batch, not %d",
			counter.MaxEntries, c.MaxInFlightItems)
	}
	return c, nil
}
