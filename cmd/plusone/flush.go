package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/reload"
	"github.com/plusone-dev/plusone/server"
)

type flushCommand struct {
	storeFlags
	ledgerFlags
	workerFlags
	processFlags
	listenFlags
	policyFileFlags
}

func (c *flushCommand) check(given []*kong.Flag) error {
	if mode, err := c.mode(); err == nil && mode != flush.ModeSharded {
		return fmt.Errorf("flush is for sharded mode, which --redis-url and --postgres-url choose; in %s mode there are no windows to drain", mode)
	}
	return errors.Join(c.storeFlags.check(given), c.ledgerFlags.check(), c.workerFlags.check(), c.processFlags.check(),
		c.listenFlags.check())
}

// run drains windows until ctx ends.
func (c *flushCommand) run(ctx context.Context, env environment) error {
	addr, err := resolve("--http-addr", c.HTTPAddr, missing(c.Insecure, c.tls(), true))
	if err != nil {
		return err
	}
	registry := newRegistry("flush")
	reloads := reload.NewMetrics(registry)
	p, err := c.open(ctx, "", registry, reloads, env.logger)
	if err != nil {
		return err
	}
	policies, err := c.openPolicies(drainBounds(), flush.ModeSharded, reloads, env.logger)
	if err != nil {
		return errors.Join(err, p.close())
	}
	defer policies.close()
	return errors.Join(c.drain(ctx, env, addr, registry, policies, p), p.close())
}

// drain drains windows, and serves HTTP at addr.
func (c *flushCommand) drain(ctx context.Context, env environment, addr *net.TCPAddr, registry *prometheus.Registry,
	policies *policies, p *ports,
) error {
	d, err := openSharded(ctx, shardedOptions{
		ledgerOptions: ledgerOptions{
			storeFlags: c.storeFlags, history: c.History, policies: policies, maxConns: c.PostgresMaxConns, logger: env.logger,
		},
		worker: &c.workerFlags,
	}, registry)
	if err != nil {
		return err
	}
	listener, err := p.http(ctx, addr)
	if err != nil {
		return errors.Join(err, d.close())
	}
	monitor := server.NewMonitor(registry, env.logger, "flush worker")
	served := make(chan error, 1)
	go func() { served <- monitor.Serve(listener) }()
	d.worker.start()
	env.logger.Info("ready", "mode", "flush worker", "http_addr", listener.Addr().String(), "version", buildVersion())

	var failure error
	select {
	case <-ctx.Done():
		env.logger.Info("stopping")
	case err := <-served:
		failure = fmt.Errorf("serve HTTP: %w", err)
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	err = d.stop(within)
	// HTTP goes last, so that the last round is still seen in the metrics.
	err = errors.Join(failure, err, monitor.Shutdown(within))
	if err == nil {
		env.logger.Info("stopped")
	}
	return err
}
