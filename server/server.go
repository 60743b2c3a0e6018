package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

const (
	// maxEntryBytes is a BatchEntry on the wire: tag and length of the entry (3), of its key (3), the key,
	// and the tag (1) and varint (10) of its delta.
	maxEntryBytes = 3 + 3 + counter.MaxKeyBytes + 1 + 10
	// maxImportBytes is an ImportLike on the wire, as long: the like (3), its key (3) and actor (3), and the tag and length
	// (2), seconds (1 and 5) and nanoseconds (1 and 5) of its moment.
	maxImportBytes = 3 + 3 + counter.MaxKeyBytes + 3 + counter.MaxActorBytes + 2 + 6 + 6
	// maxMessageBytes is the largest legal request, and room for fields that a newer client may send.
	maxMessageBytes = counter.MaxEntries*max(maxEntryBytes, maxImportBytes) + 3 + counter.MaxRequestIDBytes + 4<<10

	// maxStreams bounds the concurrent calls of one connection. A client waits for its turn beyond that.
	maxStreams = 1_000
	// streamWorkers keep the stacks that calls have grown, instead of growing a new one for every call. Changes wait for
	// their batch on them; there are about as many as wait at once on a busy server. More would take turns, and find
	// their stacks gone from the CPU's caches.
	streamWorkers = 192
	// maxHeaderBytes is ample for a bearer token.
	maxHeaderBytes = 64 << 10

	// streamWindow is how much a client may send of a request, or after it, that nobody reads, and connWindow how much of all
	// requests before it has been taken in. Being set, they do not grow, as gRPC else lets them up to 16 MB for each call. Whoever
	// waits for a larger request opens the window as far as that needs.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
	// maxOpenStreams bounds the streams of all connections: health watches, of which a client has one for each connection,
	// and reflection.
	maxOpenStreams = 20_000

	// greetingTimeout is how long the client of a new connection may take to greet. One that is there does so at
	// once, and a stop waits for those that say nothing, beyond its own time if need be.
	greetingTimeout = 5 * time.Second

	// idleInterval is how often a server that stops looks whether requests are still worked on.
	idleInterval = 20 * time.Millisecond
)

// Server serves the gRPC API and the HTTP endpoints.
type Server struct {
	grpc   *grpc.Server
	http   *http.Server
	health *health.Server
	cache  *countCache
	log    *callLog
	calls  *interceptor

	admission *admission
	admin     *adminService // nil if it is not served

	serving  atomic.Bool
	started  atomic.Bool
	stopping atomic.Bool
	ending   chan struct{} // closed when a stop ends streams
	ended    chan struct{} // closed when all calls have ended

	shutdown    sync.Once
	shutdownErr error
}

// New assembles a server. It fails if the configuration is invalid or the registry already has a server's
// metrics. A server must be ended by Shutdown, even if it is never served.
func New(store Store, reports Reports, config Config) (*Server, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("server config: %w", err)
	}
	m := newMetrics()
	in := &admission{maxRequests: int64(config.MaxInFlight), maxItems: int64(config.MaxInFlightItems), metrics: m}
	log := newCallLog(config.Logger, config.Tracing != nil, m)
	deadlines := deadline.NewTimers()
	cache, err := newCountCache(store, config.CacheBytes, config.RequestTimeout, config.MaxInFlight, m, log, deadlines)
	if err != nil {
		return nil, fmt.Errorf("count cache: %w", err)
	}
	if err := m.register(config.Registry, cache, in); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	gate, err := newGate(config, m, deadlines)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}

	s := &Server{health: health.NewServer(), cache: cache, log: log, admission: in, ending: make(chan struct{}), ended: make(chan struct{})}
	s.serveMethods(store, reports, config, m, gate, deadlines)
	s.SetNotServing()

	s.http = newHTTPServer(config.Registry, config.Logger, config.Mode, m.logsSuppressed, func(ctx context.Context) bool {
		if !s.serving.Load() || s.stopping.Load() {
			return false
		}
		err := config.Healthy(ctx)
		if err != nil {
			log.unhealthy(ctx, err)
		}
		return err == nil
	})
	return s, nil
}

// serveMethods registers all services.
func (s *Server) serveMethods(store Store, reports Reports, config Config, m *metrics, gate *gate, deadlines *deadline.Timers) {
	var who *access
	if config.Authenticator != nil {
		who = &access{authenticator: config.Authenticator, metrics: m}
	}
	s.calls = newInterceptor(m, who, s.admission, config.Audit, s.log, s.ending)
	options := append(s.calls.options(), Limits()...)
	if config.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	if config.Tracing != nil {
		options = append(options, grpc.StatsHandler(config.Tracing))
	}
	s.grpc = grpc.NewServer(options...)
	registrar := s.calls.registrar(s.grpc)
	go s.calls.arrivals.watch(s.ended)
	counters := &counterService{store: store, cache: s.cache, config: config, metrics: m, gate: gate, deadlines: deadlines}
	if config.Tracing != nil {
		counters.store = tracedStore{store}
	}
	counters.register(registrar)
	plusonev1.RegisterReportServiceServer(registrar, &reportService{reports: reports, config: config, metrics: m})
	if config.Admin != nil {
		s.admin = newAdminService(store, reports, s.cache, config, m)
		plusonev1.RegisterAdminServiceServer(registrar, s.admin)
	}
	healthpb.RegisterHealthServer(registrar, s.health)
	if !config.NoReflection {
		reflection.Register(s.grpc)
	}
	m.calls.addAll(s.grpc.GetServiceInfo())
	for name, method := range m.calls.methods {
		method.rule = ruleOf(name, config.PrivateHealth)
	}
}

// Limits are the options of gRPC by which a Server bounds what a connection may cost. It sets them itself.
func Limits() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(greetingTimeout),
		// Clients behind proxies that drop idle connections ping, but not more often than this.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// Connections whose client has vanished are noticed and closed.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// After a stop no handler uses the store any more, so it can be closed.
		grpc.WaitForHandlers(true),
	}
}

// Serve serves both listeners, which it closes, until Shutdown or until one of them fails. It reports the
// server healthy. It returns nil after Shutdown, and may be called once.
func (s *Server) Serve(grpcListener, httpListener net.Listener) error {
	if s.started.Swap(true) {
		return errors.New("server was started before")
	}
	s.SetServing()
	grpcDone, httpDone := make(chan error, 1), make(chan error, 1)
	go func() { grpcDone <- s.grpc.Serve(grpcListener) }()
	go func() { httpDone <- s.http.Serve(httpListener) }()

	var grpcErr, httpErr error
	select {
	case grpcErr = <-grpcDone:
		if !s.stopping.Load() {
			_ = s.http.Close() // the error that counts is the one that ended gRPC
		}
		httpErr = <-httpDone
	case httpErr = <-httpDone:
		if !s.stopping.Load() {
			s.SetNotServing()
			s.grpc.Stop()
		}
		grpcErr = <-grpcDone
	}
	s.SetNotServing()
	if s.stopping.Load() {
		return nil
	}
	if errors.Is(httpErr, http.ErrServerClosed) {
		httpErr = nil
	}
	return errors.Join(wrap("serve gRPC", grpcErr), wrap("serve HTTP", httpErr))
}

// SetServing reports the server healthy, to gRPC health checks and /healthz. It does nothing after Shutdown.
func (s *Server) SetServing() { s.setServing(true) }

// SetNotServing reports the server unhealthy, to gRPC health checks and /healthz. Calls are still answered.
func (s *Server) SetNotServing() { s.setServing(false) }

func (s *Server) setServing(serving bool) {
	s.serving.Store(serving)
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		st = healthpb.HealthCheckResponse_SERVING
	}
	services := []string{"", plusonev1.CounterService_ServiceDesc.ServiceName, plusonev1.ReportService_ServiceDesc.ServiceName}
	if s.admin != nil {
		services = append(services, plusonev1.AdminService_ServiceDesc.ServiceName)
	}
	for _, service := range services {
		s.health.SetServingStatus(service, st)
	}
}

// Shutdown reports the server unhealthy, lets the requests that are under way finish, then ends streams, and cuts
// off what has not finished when ctx ends, which is then the error. When it returns, the store is no longer used. It
// may be called before Serve, concurrently and repeatedly: every call waits for the first and returns its error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.shutdown.Do(func() { s.shutdownErr = s.stop(ctx) })
	return s.shutdownErr
}

func (s *Server) stop(ctx context.Context) error {
	s.stopping.Store(true)
	s.health.Shutdown() // not serving, from now on
	if s.admin != nil {
		s.admin.stop()
	}

	drained := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(drained)
	}()
	grpcErr := s.drain(ctx, drained)
	close(s.ended)
	cacheErr := s.cache.close(ctx)
	// HTTP goes last: /healthz tells load balancers all along that the server goes away.
	httpErr := s.http.Shutdown(ctx)
	if httpErr != nil {
		httpErr = errors.Join(httpErr, s.http.Close())
	}
	return errors.Join(wrap("stop gRPC", grpcErr), wrap("stop reads", cacheErr), wrap("stop HTTP", httpErr))
}

// drain waits until all calls have ended. Streams, which may last for ever, it ends once no request is worked
// on: until then health watches tell that the server stops. When ctx ends it cuts off everything.
func (s *Server) drain(ctx context.Context, drained <-chan struct{}) error {
	ticker := time.NewTicker(idleInterval)
	defer ticker.Stop()
	for ended := false; ; {
		select {
		case <-drained:
			return nil
		case <-ctx.Done():
			s.grpc.Stop()
			<-drained
			return ctx.Err()
		case <-ticker.C:
			if !ended && s.admission.requests.Load() == 0 {
				close(s.ending)
				ended = true
			}
		}
	}
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
