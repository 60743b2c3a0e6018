// Package tracing sends traces of calls to a collector of OpenTelemetry, by OTLP over gRPC.
//
// A call is traced if its caller says so, and otherwise with a chance. Spans say which method was called, what came of it,
// and when: never a key, an actor or a request id. What cannot be sent is lost, and counted: traces never hold up a call.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
)

const (
	// queueSize is how many spans may wait to be sent, about a kilobyte each. More are lost.
	queueSize = 4096
	// batchSize is how many spans are sent together at most, and batchWait how long they gather.
	batchSize = 512
	batchWait = 2 * time.Second
	// sendTimeout bounds the sending of a batch, with its retries.
	sendTimeout = 10 * time.Second
	// shutdownTimeout bounds what is sent in the end.
	shutdownTimeout = 5 * time.Second
)

// Config is what is traced, and where traces go.
type Config struct {
	// Endpoint is the collector: http for plain text, https for TLS. The environment variables of OpenTelemetry add to
	// it: OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and OTEL_RESOURCE_ATTRIBUTES.
	Endpoint *url.URL
	// Ratio is the part of calls that are traced, of those whose caller has not decided: from 0 to 1.
	Ratio float64
	// Version and Mode tell the process from others.
	Version, Mode string
	Registry      prometheus.Registerer
	Logger        *slog.Logger
}

// Tracing records spans and sends them in the background.
type Tracing struct {
	provider *sdktrace.TracerProvider
	handler  stats.Handler
}

// Start starts to send. The collector need not be there. End it by Shutdown.
func Start(ctx context.Context, cfg Config) (*Tracing, error) {
	m := newMetrics()
	if err := m.register(cfg.Registry); err != nil {
		return nil, fmt.Errorf("register metrics of traces: %w", err)
	}
	exporter, err := otlptracegrpc.New(ctx,
		otlptracegrpc.WithEndpointURL(cfg.Endpoint.String()), otlptracegrpc.WithTimeout(sendTimeout))
	if err != nil {
		return nil, fmt.Errorf("send traces: %w", err)
	}
	counted := &countedExporter{SpanExporter: exporter, metrics: m, logger: cfg.Logger}
	batches := sdktrace.NewBatchSpanProcessor(counted,
		// What is being sent does not wait any more.
		sdktrace.WithMaxQueueSize(queueSize+batchSize), sdktrace.WithMaxExportBatchSize(batchSize),
		sdktrace.WithBatchTimeout(batchWait), sdktrace.WithExportTimeout(sendTimeout))
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Ratio))),
		sdktrace.WithSpanProcessor(&boundedProcessor{SpanProcessor: batches, metrics: m}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "plusone"), attribute.String("service.version", cfg.Version),
			attribute.String("service.instance.id", uuid.NewString()), attribute.String("plusone.mode", cfg.Mode))),
	)
	return &Tracing{provider: provider, handler: otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), otelgrpc.WithFilter(isTraced),
	)}, nil
}

// isTraced leaves out health checks, of which there are many and which nobody looks at.
func isTraced(info *stats.RPCTagInfo) bool {
	return !strings.HasPrefix(info.FullMethodName, "/"+healthpb.Health_ServiceDesc.ServiceName+"/")
}

// Handler traces the calls of a gRPC server.
func (t *Tracing) Handler() stats.Handler { return t.handler }

// Shutdown sends what waits, as far as ctx and a few seconds allow: a collector that is down must not hold up a stop.
func (t *Tracing) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last traces: %w", err)
	}
	return nil
}
