package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deny"
	"github.com/plusone-dev/plusone/internal/limit"
	"github.com/plusone-dev/plusone/internal/policy"
	"github.com/plusone-dev/plusone/internal/reload"
	"github.com/plusone-dev/plusone/server"
	"github.com/plusone-dev/plusone/shard"
)

// policyFileFlags are of commands that count, or drain what was counted.
type policyFileFlags struct {
	PolicyFile string `group:"policy" placeholder:"FILE" help:"Policies: what may count in which namespace, how often, and how its history is kept. It is read again when it changes. \"plusone policy check\" checks one."`
}

// denyFlags name actors whose changes must not count.
type denyFlags struct {
	DenyFile     string `group:"policy" placeholder:"FILE" help:"Actors whose changes must not count, one a line. It is read again when it changes."`
	DenyRedisKey string `group:"sharded" placeholder:"KEY" help:"A set in Redis of actors whose changes must not count, read every 5s; such as plusone:denied."`
}

func (f *denyFlags) check() error {
	if strings.HasPrefix(f.DenyRedisKey, "plusone:{") {
		return fmt.Errorf("--deny-redis-key is %s, and must not begin as the keys of counts do, with plusone:{", f.DenyRedisKey)
	}
	return nil
}

// policies are those of a file, which may change. Nil policies say nothing.
type policies struct{ file *reload.File[*policy.Set] }

// openPolicies loads the file, and follows it. It returns nil if there is none.
func (f *policyFileFlags) openPolicies(bounds policy.Bounds, mode flush.Mode, metrics *reload.Metrics, logger *slog.Logger,
) (*policies, error) {
	if f.PolicyFile == "" {
		return nil, nil
	}
	file, err := reload.Open(reload.Options{Name: "policy", Path: f.PolicyFile, Logger: logger, Metrics: metrics},
		func(data []byte) (*policy.Set, error) {
			set, err := policy.Parse(data, bounds)
			if err == nil && mode != flush.ModeSharded {
				warnOfSpreading(set, mode, logger)
			}
			return set, err
		})
	if err != nil {
		return nil, err
	}
	return &policies{file}, nil
}

// warnOfSpreading: one file may be for deployments of several modes.
func warnOfSpreading(set *policy.Set, mode flush.Mode, logger *slog.Logger) {
	var threshold, shards bool // warned of
	for _, p := range set.All() {
		if p.HotThreshold != policy.DeploymentsThreshold && !threshold {
			threshold = true
			logger.Warn("hot_threshold has no effect in this mode, which spreads no keys", "mode", string(mode), "policy", p.Name)
		}
		if p.Shards != 0 && !shards {
			shards = true
			logger.Warn("shards has no effect in this mode, which spreads no keys", "mode", string(mode), "policy", p.Name)
		}
	}
}

func (p *policies) close() {
	if p != nil {
		p.file.Close()
	}
}

// Of implements server.Policies.
func (p *policies) Of(namespace string) *policy.Policy { return p.file.Get().Of(namespace) }

// historyOf tells the history of keys, and is nil if there are no policies.
func (p *policies) historyOf() flush.HistoryOf {
	if p == nil {
		return nil
	}
	return func(key string) flush.History { return flush.History(p.Of(counter.Namespace(key)).History) }
}

// hotThresholdOf tells the threshold of keys, and is nil if there are no policies.
func (p *policies) hotThresholdOf() func(key string) (int, bool) {
	if p == nil {
		return nil
	}
	return func(key string) (int, bool) {
		threshold := p.Of(counter.Namespace(key)).HotThreshold
		return threshold, threshold != policy.DeploymentsThreshold
	}
}

// widthOf tells over how many shards hot keys are spread, and is nil if there are no policies.
func (p *policies) widthOf() func(key string) int {
	if p == nil {
		return nil
	}
	return func(key string) int { return p.Of(counter.Namespace(key)).Shards }
}

// denied are the actors of a file and of a set in Redis, either of which may be nil.
type denied struct {
	file *reload.File[deny.Actors]
	set  *deny.RedisSet
}

// Denied implements server.DenyList.
func (d *denied) Denied(actor string) bool {
	return d.file != nil && d.file.Get().Denied(actor) || d.set != nil && d.set.Denied(actor)
}

func (d *denied) close() {
	if d.file != nil {
		d.file.Close()
	}
	if d.set != nil {
		d.set.Close()
	}
}

// openDenied loads what the flags name, and follows it. It returns nil if they name nothing.
func (f *denyFlags) openDenied(ctx context.Context, client rueidis.Client, registry *prometheus.Registry,
	metrics *reload.Metrics, logger *slog.Logger,
) (*denied, error) {
	if f.DenyFile == "" && f.DenyRedisKey == "" {
		return nil, nil
	}
	d := &denied{}
	var err error
	if f.DenyFile != "" {
		d.file, err = reload.Open(reload.Options{
			Name: "deny", Path: f.DenyFile, MaxBytes: deny.MaxFileBytes, Logger: logger, Metrics: metrics,
		}, deny.Parse)
	}
	if err == nil && f.DenyRedisKey != "" {
		d.set, err = deny.OpenRedis(ctx, client, deny.RedisConfig{Key: f.DenyRedisKey, Metrics: deny.NewMetrics(registry), Logger: logger})
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// gate is what decides whether a change may count, as far as the flags ask for it.
type gate struct {
	policies *policies
	limiter  server.Limiter
	tickets  bool                            // the store redeems those of the limiter
	stop     func(ctx context.Context) error // of the limiter
	denied   *denied
	guard    *openedGuard
}

// openGate opens the gate of a deployment, which gets to close the policies too.
func (c *serveCommand) openGate(ctx context.Context, p *policies, d *deployment, registry *prometheus.Registry,
	metrics *reload.Metrics, logger *slog.Logger,
) (*gate, error) {
	g := &gate{policies: p}
	switch {
	case p == nil:
	case d.limiter != nil:
		g.limiter, g.tickets, g.stop = d.limiter, d.redis.Mode() != rueidis.ClientModeCluster, d.limiter.Close
	default:
		g.limiter = limit.NewMemory(limit.NewMetrics(registry))
	}
	var err error
	if g.denied, err = c.openDenied(ctx, d.redis, registry, metrics, logger); err != nil {
		return nil, errors.Join(err, g.close(ctx))
	}
	if g.guard, err = c.guardFlags.open(registry, metrics, logger); err != nil {
		return nil, errors.Join(err, g.close(ctx))
	}
	return g, nil
}

// configure has a server ask the gate.
func (g *gate) configure(config *server.Config) {
	if g.policies != nil {
		config.Policies, config.Limiter, config.Tickets = g.policies, g.limiter, g.tickets
	}
	if g.denied != nil {
		config.Denied = g.denied
	}
	if g.guard != nil {
		config.Guard = g.guard.client
	}
}

func (g *gate) close(ctx context.Context) error {
	g.policies.close()
	if g.denied != nil {
		g.denied.close()
	}
	g.guard.close()
	if g.stop == nil {
		return nil
	}
	return g.stop(ctx)
}

// policyCommand is about policy files.
type policyCommand struct {
	Check policyCheckCommand `cmd:"" help:"Check a policy file. Exit code 0: it can be used, and what it states is printed; 1: it cannot, and every problem is printed with its line."`
}

type policyCheckCommand struct {
	File string `arg:"" help:"The policy file."`

	MaxDelta     int64         `group:"limits" default:"1000000000000" help:"As the servers have it: no policy may state more."`
	DedupeWindow time.Duration `group:"fixed" default:"5m" help:"As the servers have it: no policy may state more."`
	Shards       int           `group:"fixed" default:"8" help:"As servers in sharded mode have it: no policy may state more."`
}

func (c *policyCheckCommand) check([]*kong.Flag) error {
	return errors.Join(
		between("--max-delta", c.MaxDelta, 1, 1<<62),
		between("--dedupe-window", c.DedupeWindow, 10*time.Second, 24*time.Hour),
		between("--shards", c.Shards, 1, shard.MaxShards),
	)
}

// run prints the policies of the file, or what is wrong with it.
func (c *policyCheckCommand) run(_ context.Context, env environment) error {
	data, err := readFile(c.File, reload.DefaultMaxBytes)
	if err != nil {
		return err
	}
	set, err := policy.Parse(data, policy.Bounds{
		MaxDelta: c.MaxDelta, DedupeWindow: c.DedupeWindow, Shards: c.Shards, Guard: true,
	})
	var problems policy.FileErrors
	switch {
	case errors.As(err, &problems):
		for _, p := range problems {
			if _, err := fmt.Fprintf(env.stdout, "%s:%d: %s\n", c.File, max(p.Line, 1), p.Text); err != nil {
				return err
			}
		}
		return &exitError{code: exitFailed}
	case err != nil:
		return err
	}
	for _, p := range set.All() {
		if _, err := fmt.Fprintln(env.stdout, p); err != nil {
			return err
		}
	}
	return nil
}

// bounds of policies, by what a server is set to. In modes that have no shards a policy may state any number, as it is
// for other deployments.
func (c *serveCommand) bounds(mode flush.Mode) policy.Bounds {
	b := policy.Bounds{MaxDelta: c.MaxDelta, DedupeWindow: c.DedupeWindow, Shards: shard.MaxShards, Guard: c.GuardURL != ""}
	if mode == flush.ModeSharded {
		b.Shards = c.Shards
	}
	return b
}

// drainBounds let a worker, which only keeps histories, take what any server takes.
func drainBounds() policy.Bounds {
	return policy.Bounds{MaxDelta: math.MaxInt64, DedupeWindow: math.MaxInt64, Shards: shard.MaxShards, Guard: true}
}
