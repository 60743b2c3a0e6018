package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/certs"
	"github.com/plusone-dev/plusone/internal/connlimit"
	"github.com/plusone-dev/plusone/internal/reload"
)

// ports make the listeners of a process: bounded, and by TLS if there is a certificate.
type ports struct {
	flags       *listenFlags
	certs       *certs.Certificates // nil for plain text
	connections *connlimit.Metrics
	debug       *debugServer // nil if there is no --admin-addr
}

// open loads the certificates, and serves what is for operators.
func (f *listenFlags) open(ctx context.Context, clientCA string, registry prometheus.Registerer, files *reload.Metrics, logger *slog.Logger,
) (*ports, error) {
	p := &ports{flags: f, connections: connlimit.NewMetrics(registry)}
	var err error
	if f.tls() {
		p.certs, err = certs.Open(certs.Options{
			Certificate: f.TLSCert, Key: f.TLSKey, ClientCA: clientCA, Registry: registry, Metrics: files, Logger: logger,
		})
	}
	if err == nil && f.AdminAddr != "" {
		p.debug, err = serveDebug(ctx, f.AdminAddr, logger)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *ports) close() error {
	if p.certs != nil {
		p.certs.Close()
	}
	if p.debug != nil {
		return p.debug.close()
	}
	return nil
}

// grpcTLS is nil for plain text.
func (p *ports) grpcTLS() *tls.Config {
	if p.certs == nil {
		return nil
	}
	return p.certs.GRPC()
}

// grpc listens for gRPC, which does its own TLS.
func (p *ports) grpc(ctx context.Context, addr *net.TCPAddr) (net.Listener, error) {
	listener, err := listen(ctx, "--grpc-addr", addr)
	if err != nil {
		return nil, err
	}
	return connlimit.Listen(listener, "grpc", p.flags.MaxConnections, p.connections), nil
}

func (p *ports) http(ctx context.Context, addr *net.TCPAddr) (net.Listener, error) {
	listener, err := listen(ctx, "--http-addr", addr)
	if err != nil {
		return nil, err
	}
	listener = connlimit.Listen(listener, "http", p.flags.MaxConnections, p.connections)
	if p.certs != nil {
		listener = tls.NewListener(listener, p.certs.HTTP())
	}
	return listener, nil
}
