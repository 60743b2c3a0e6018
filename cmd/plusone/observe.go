package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/stats"

	"github.com/plusone-dev/plusone/internal/auditlog"
	"github.com/plusone-dev/plusone/internal/tracing"
)

// observeFlags say where traces and the audit log go.
type observeFlags struct {
	TraceEndpoint string  `group:"observe" placeholder:"URL" help:"Collector of OpenTelemetry that takes traces of calls by OTLP over gRPC: https://host:4317, or http:// for plain text, which off loopback needs --insecure. Without it there are no traces, and they cost nothing."`
	TraceRatio    float64 `group:"observe" default:"0.01" help:"Part of the calls that are traced, from 0 to 1, of those whose caller has not decided. While there are traces each call costs a few microseconds more, traced or not."`
	AuditLog      string  `group:"observe" default:"-" help:"File that a line is appended to before and after each call of AdminService, with the keys and actors that it is about. While it cannot be written these calls are refused. - is the log on stderr."`
}

func (f *observeFlags) check(given []*kong.Flag, insecure bool) error {
	if f.TraceEndpoint == "" {
		for _, flag := range given {
			if flag.Name == "trace-ratio" {
				return errors.New("--trace-ratio has no effect without --trace-endpoint")
			}
		}
	}
	if f.AuditLog == "" {
		return errors.New("--audit-log must name a file, or be -")
	}
	_, err := f.endpoint(insecure)
	return errors.Join(err, between("--trace-ratio", f.TraceRatio, 0, 1))
}

// endpoint is where traces go, nil for nowhere. Its errors do not quote the URL, which may hold a password.
func (f *observeFlags) endpoint(insecure bool) (*url.URL, error) {
	if f.TraceEndpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(f.TraceEndpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("--trace-endpoint is not valid: want https://host:port or http://host:port")
	case u.User != nil:
		return nil, errors.New("--trace-endpoint must not have a user or password: headers for the collector go into " +
			"the environment variable OTEL_EXPORTER_OTLP_HEADERS")
	case u.Scheme == "http" && !insecure && !isLoopback(u.Hostname()):
		return nil, errors.New("--trace-endpoint is not a loopback address: traces in plain text tell everybody on the way " +
			"who calls what and when. Use https, or set --insecure")
	}
	return u, nil
}

// isLoopback reports whether a host is this one, whatever DNS says.
func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// observers are what a server tells of its calls.
type observers struct {
	audit   *auditlog.Log
	tracing *tracing.Tracing // nil if calls are not traced
	logger  *slog.Logger
}

// observe opens the audit log and starts traces.
func (f *observeFlags) observe(ctx context.Context, mode string, insecure bool, registry prometheus.Registerer, logger *slog.Logger) (*observers, error) {
	endpoint, err := f.endpoint(insecure)
	if err != nil {
		return nil, err
	}
	o := &observers{logger: logger}
	if f.AuditLog == "-" {
		o.audit, err = auditlog.ToLogger(logger, registry)
	} else {
		o.audit, err = auditlog.ToFile(f.AuditLog, logger, registry)
	}
	if err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	if endpoint == nil {
		return o, nil
	}
	o.tracing, err = tracing.Start(ctx, tracing.Config{
		Endpoint: endpoint, Ratio: f.TraceRatio, Version: buildVersion(), Mode: mode, Registry: registry, Logger: logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--trace-endpoint: %w", err), o.audit.Close())
	}
	return o, nil
}

// handler traces calls; it is nil if they are not traced.
func (o *observers) handler() stats.Handler {
	if o.tracing == nil {
		return nil
	}
	return o.tracing.Handler()
}

// stop ends all, after the last call. That traces were lost is not worth a failure.
func (o *observers) stop(ctx context.Context) error {
	if o == nil {
		return nil
	}
	if o.tracing != nil {
		if err := o.tracing.Shutdown(ctx); err != nil {
			o.logger.Warn("the last traces are lost", "error", err)
		}
	}
	return o.audit.Close()
}
