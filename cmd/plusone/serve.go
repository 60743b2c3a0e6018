package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/reload"
	"github.com/plusone-dev/plusone/server"
)

type serveCommand struct {
	storeFlags
	fileFlags
	ledgerFlags
	GRPCAddr string `group:"listen" name:"grpc-addr" default:"127.0.0.1:50051" help:"Where the gRPC API is served; port 0 takes a free one."`
	processFlags
	listenFlags
	accessFlags
	shardFlags
	Flush bool `group:"sharded" default:"true" help:"Also drain windows into Postgres. Set --flush=false on servers that leave that to others, of which there must be at least one."`
	workerFlags
	limitFlags
	policyFileFlags
	denyFlags
	guardFlags
	observeFlags
}

// shardFlags are of the live store of sharded mode.
type shardFlags struct {
	HotThreshold      int           `group:"sharded" default:"2000" help:"Changes a second, on one server, that make a key hot and spread it over all shards, or as many as its policy says; 0 spreads none. A spread key is read from all shards, so rather too high than too low."`
	MaxSpreadKeys     int           `group:"sharded" default:"1000" help:"Most spread keys for each shard: they stay spread for good."`
	BaseTTL           time.Duration `group:"sharded" default:"1h" help:"How long Redis keeps what Postgres holds of a key. Longer means fewer reads of Postgres, and more memory."`
	MissingTTL        time.Duration `group:"sharded" default:"1m" help:"How long Redis remembers that Postgres does not have a key, so that requests for unknown keys do not reach it."`
	RedisWaitReplicas int           `group:"sharded" default:"0" help:"Replicas that must have a change before it is acknowledged (WAIT), at the cost of a round trip. It makes loss by a failover unlikely, not impossible."`
	RedisWaitTimeout  time.Duration `group:"sharded" default:"500ms" help:"How long to wait for the replicas; after that the change is in doubt, and a retry settles it."`
}

func (f *shardFlags) check() error {
	return errors.Join(
		between("--hot-threshold", f.HotThreshold, 0, 1_000_000_000),
		between("--max-spread-keys", f.MaxSpreadKeys, 0, 100_000),
		between("--base-ttl", f.BaseTTL, time.Second, 30*24*time.Hour),
		between("--missing-ttl", f.MissingTTL, 100*time.Millisecond, 24*time.Hour),
		between("--redis-wait-replicas", f.RedisWaitReplicas, 0, 16),
		// An attempt to write takes at most a second, the wait included.
		between("--redis-wait-timeout", f.RedisWaitTimeout, time.Millisecond, 900*time.Millisecond),
	)
}

// limitFlags bound requests.
type limitFlags struct {
	MaxDelta       int64         `group:"limits" default:"1000000000000" help:"Largest change of one entry, either way: a wrong one must not eat up the range of a counter."`
	RequestTimeout time.Duration `group:"limits" default:"5s" help:"How long the store may take for a request, however long its caller would wait."`
	MaxInFlight    int           `group:"limits" default:"50000" help:"Requests worked on at once. More are refused with RESOURCE_EXHAUSTED, at little cost."`
	CacheBytes     int64         `group:"limits" default:"67108864" help:"Memory of the cache of counts, in bytes. Besides fresh answers it holds the last known ones, which are served as stale in an outage."`
}

func (f *limitFlags) check() error {
	const mebibyte = 1 << 20
	return errors.Join(
		between("--max-delta", f.MaxDelta, 1, 1<<62),
		between("--request-timeout", f.RequestTimeout, 10*time.Millisecond, time.Minute),
		between("--max-in-flight", f.MaxInFlight, 1, 10_000_000),
		between("--cache-bytes", f.CacheBytes, mebibyte, 1<<40),
	)
}

func (c *serveCommand) check(given []*kong.Flag) error {
	return errors.Join(c.storeFlags.check(given), c.ledgerFlags.check(), c.processFlags.check(), c.shardFlags.check(),
		c.workerFlags.check(), c.limitFlags.check(), c.listenFlags.check(), c.accessFlags.check(given, c.tls()), c.denyFlags.check(),
		c.checkGuard(given), c.observeFlags.check(given, c.Insecure))
}

// run serves until ctx ends, and then stops in order.
func (c *serveCommand) run(ctx context.Context, env environment) error {
	addrs, err := c.resolve()
	if err != nil {
		return err
	}
	tuneGC()
	if err := tuneBuffers(); err != nil {
		return err
	}
	mode, err := c.mode()
	if err != nil {
		return err
	}
	registry := newRegistry(string(mode))
	e, err := c.openEntrance(ctx, registry, env.logger)
	if err != nil {
		return err
	}
	return errors.Join(c.serve(ctx, env, addrs, registry, e), e.close())
}

// serve serves at an entrance.
func (c *serveCommand) serve(ctx context.Context, env environment, addrs serveAddrs, registry *prometheus.Registry, e *entrance) error {
	d, err := c.open(ctx, registry, e.files, env.logger)
	if err != nil {
		return err
	}
	if d.observers, err = c.observe(ctx, string(d.mode), c.Insecure, registry, env.logger); err != nil {
		return errors.Join(err, c.stop(ctx, nil, d))
	}
	config := server.Config{
		Logger: env.logger, Registry: registry, Mode: string(d.mode), Admin: d.admin, Tracing: d.observers.handler(), Audit: d.observers.audit,
		TLS: e.ports.grpcTLS(), Authenticator: e.authenticator(), PrivateHealth: !c.HealthPublic,
		NoReflection: c.Reflection == "off" || c.Reflection == "auto" && !addrs.grpc.IP.IsLoopback(),
		MaxDelta:     c.MaxDelta, RequestTimeout: c.RequestTimeout, CacheBytes: c.CacheBytes, MaxInFlight: c.MaxInFlight,
	}
	d.gate.configure(&config)
	s, err := server.New(d.store, d.reports, config)
	if err != nil {
		return errors.Join(err, c.stop(ctx, nil, d))
	}
	grpcListener, httpListener, err := addrs.listen(ctx, e.ports)
	if err != nil {
		return errors.Join(err, c.stop(ctx, s, d))
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(grpcListener, httpListener) }()
	if d.worker != nil {
		d.worker.start()
	}
	env.logger.Info("ready", "mode", string(d.mode), "grpc_addr", grpcListener.Addr().String(),
		"http_addr", httpListener.Addr().String(), "flush", d.worker != nil, "version", buildVersion())

	select {
	case <-ctx.Done():
		env.logger.Info("stopping")
		err = errors.Join(c.stop(ctx, s, d), <-served)
		if err == nil {
			env.logger.Info("stopped")
		}
		return err
	case failure := <-served:
		return errors.Join(failure, c.stop(ctx, s, d))
	}
}

// stop answers the calls under way, then finishes what they left, within the shutdown timeout.
func (c *serveCommand) stop(ctx context.Context, s *server.Server, d *deployment) error {
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	var err error
	if s != nil {
		err = s.Shutdown(within)
	}
	return errors.Join(err, d.stop(within))
}

// open opens the store of the mode that the flags choose, its worker, and its gate.
func (c *serveCommand) open(ctx context.Context, registry *prometheus.Registry, reloads *reload.Metrics, logger *slog.Logger) (*deployment, error) {
	mode, err := c.mode()
	if err != nil {
		return nil, err
	}
	policies, err := c.openPolicies(c.bounds(mode), mode, reloads, logger)
	if err != nil {
		return nil, err
	}
	d, err := c.openStore(ctx, mode, policies, registry, logger)
	if err != nil {
		policies.close()
		return nil, err
	}
	if d.gate, err = c.openGate(ctx, policies, d, registry, reloads, logger); err != nil {
		return nil, errors.Join(err, c.stop(ctx, nil, d))
	}
	return d, nil
}

func (c *serveCommand) openStore(ctx context.Context, mode flush.Mode, policies *policies, registry *prometheus.Registry,
	logger *slog.Logger,
) (*deployment, error) {
	o := ledgerOptions{
		storeFlags: c.storeFlags, data: c.Data, history: c.History, policies: policies, maxConns: c.PostgresMaxConns, logger: logger,
	}
	switch mode {
	case flush.ModeEmbedded:
		return openEmbedded(ctx, o, registry)
	case flush.ModeDirect:
		return openDirect(ctx, o, registry)
	default:
		sharded := shardedOptions{ledgerOptions: o, store: &c.shardFlags}
		if c.Flush {
			sharded.worker = &c.workerFlags
		}
		return openSharded(ctx, sharded, registry)
	}
}

// serveAddrs are where a server listens.
type serveAddrs struct{ grpc, http *net.TCPAddr }

func (c *serveCommand) resolve() (serveAddrs, error) {
	var a serveAddrs
	var grpcErr, httpErr error
	a.grpc, grpcErr = resolve("--grpc-addr", c.GRPCAddr, missing(c.Insecure, c.tls(), c.authentication()))
	a.http, httpErr = resolve("--http-addr", c.HTTPAddr, missing(c.Insecure, c.tls(), true))
	return a, errors.Join(grpcErr, httpErr)
}

func (a serveAddrs) listen(ctx context.Context, p *ports) (grpc, http net.Listener, err error) {
	if grpc, err = p.grpc(ctx, a.grpc); err != nil {
		return nil, nil, err
	}
	if http, err = p.http(ctx, a.http); err != nil {
		return nil, nil, errors.Join(err, grpc.Close())
	}
	return grpc, http, nil
}

// newRegistry has the metrics of the process and its runtime, and says what runs and how.
func newRegistry(mode string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "plusone_build_info", Help: "Always 1: the version that runs, and in which mode.",
			ConstLabels: prometheus.Labels{"version": buildVersion(), "mode": mode},
		}, func() float64 { return 1 }),
	} {
		if err := registry.Register(c); err != nil {
			panic(fmt.Sprintf("register %T in an empty registry: %v", c, err))
		}
	}
	return registry
}

// gcPercent trades memory, of which a server keeps little, for a fifth less CPU under load.
const gcPercent = 400

// tuneGC leaves GOGC to whoever sets it. GOMEMLIMIT holds in any case.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// tuneBuffers gives gRPC buffers of all sizes, up to one for the largest message. Its own have nothing between 32 KiB and
// 1 MiB, so that each answer a little over 32 KiB whose client does not take it would hold a whole mebibyte.
func tuneBuffers() error {
	pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20) // powers of 2
	if err != nil {
		return fmt.Errorf("buffer pool: %w", err)
	}
	experimental.SetDefaultBufferPool(pool)
	return nil
}
