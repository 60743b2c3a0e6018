package tracing_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/internal/tracing"
)

// collector takes spans when its gate is open, and says when one has been asked.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	asked chan struct{}
	gate  chan struct{}
	err   error

	mu    sync.Mutex
	spans int
}

func (c *collector) Export(ctx context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	select {
	case c.asked <- struct{}{}:
	default:
	}
	select {
	case <-c.gate:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.err != nil {
		return nil, c.err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			c.spans += len(s.Spans)
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (c *collector) start(t *testing.T) *url.URL {
	t.Helper()
	c.asked, c.gate = make(chan struct{}, 1), make(chan struct{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(s.Stop)
	return &url.URL{Scheme: "http", Host: listener.Addr().String()}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// started is a Tracing with its metrics and log.
type started struct {
	*tracing.Tracing
	registry *prometheus.Registry
	log      *bytes.Buffer
}

func start(t *testing.T, endpoint *url.URL, ratio float64) started {
	t.Helper()
	s := started{registry: prometheus.NewRegistry(), log: &bytes.Buffer{}}
	var err error
	s.Tracing, err = tracing.Start(t.Context(), tracing.Config{
		Endpoint: endpoint, Ratio: ratio, Version: "v1", Mode: "embedded", Registry: s.registry,
		Logger: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	must(t, err)
	return s
}

// call is a call of a method, from begin to end.
func (s started) call(ctx context.Context, method string) {
	h := s.Handler()
	ctx = h.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: method})
	h.HandleRPC(ctx, &stats.Begin{BeginTime: time.Now()})
	h.HandleRPC(ctx, &stats.End{BeginTime: time.Now(), EndTime: time.Now()})
}

func (s started) counted(t *testing.T, name, reason string) float64 {
	t.Helper()
	families, err := s.registry.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (reason == "" || m.GetLabel()[0].GetValue() == reason) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no %s of %q", name, reason)
	return 0
}

const method = "/plusone.v1.CounterService/Get"

// Spans that find no room are lost and counted, and no call waits for a collector that hangs. What there was room for
// arrives when it goes on, at the latest at the end.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	c := &collector{}
	s := start(t, c.start(t), 1)
	const calls = 10_000
	for range calls {
		s.call(t.Context(), method)
	}
	<-c.asked
	if n := s.counted(t, "plusone_trace_spans_total", ""); n != calls {
		t.Errorf("%v spans of %d calls", n, calls)
	}
	full := s.counted(t, "plusone_trace_spans_lost_total", "queue_full")
	if waiting := s.counted(t, "plusone_trace_queue_spans", ""); full == 0 || waiting > 4096 || full+waiting != calls {
		t.Errorf("%v spans wait, and %v are lost", waiting, full)
	}
	close(c.gate)
	must(t, s.Shutdown(t.Context()))
	if c.spans != calls-int(full) {
		t.Errorf("%d spans have arrived, and %v are lost, of %d", c.spans, full, calls)
	}
	if n := s.counted(t, "plusone_trace_queue_spans", ""); n != 0 {
		t.Errorf("%v spans wait in the end", n)
	}
}

// A collector that refuses is counted and logged, and a stop does not wait long for one that hangs.
func TestCollectorFails(t *testing.T) {
	t.Parallel()
	refusing := &collector{err: status.Error(codes.PermissionDenied, "no")}
	s := start(t, refusing.start(t), 1)
	close(refusing.gate)
	s.call(t.Context(), method)
	must(t, s.Shutdown(t.Context()))
	if n := s.counted(t, "plusone_trace_spans_lost_total", "send_failed"); n != 1 || !strings.Contains(s.log.String(), "traces are lost") {
		t.Errorf("%v spans are lost:\n%s", n, s.log)
	}
	hanging := &collector{}
	s = start(t, hanging.start(t), 1)
	s.call(t.Context(), method)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err == nil {
		t.Error("a collector that hangs took the last spans")
	}
}

// Whether a call is traced is for its caller to say, and else for chance; health checks are not.
func TestSampling(t *testing.T) {
	t.Parallel()
	c := &collector{}
	endpoint := c.start(t)
	close(c.gate)
	parent := func(flags string) context.Context {
		return metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"+flags))
	}
	never := start(t, endpoint, 0)
	never.call(t.Context(), method)
	never.call(parent("00"), method)
	if n := never.counted(t, "plusone_trace_spans_total", ""); n != 0 {
		t.Errorf("%v spans that nobody asked for", n)
	}
	never.call(parent("01"), method)
	if n := never.counted(t, "plusone_trace_spans_total", ""); n != 1 {
		t.Errorf("%v spans that the caller asked for", n)
	}
	must(t, never.Shutdown(t.Context()))
	always := start(t, endpoint, 1)
	always.call(parent("00"), method)
	always.call(t.Context(), "/grpc.health.v1.Health/Check")
	always.call(parent("01"), "/grpc.health.v1.Health/Watch")
	if n := always.counted(t, "plusone_trace_spans_total", ""); n != 0 {
		t.Errorf("%v spans of health checks, or that the caller did not want", n)
	}
	must(t, always.Shutdown(t.Context()))
}
