package main_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// collector takes traces as a collector of OpenTelemetry does.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	addr string

	mu       sync.Mutex
	requests []*collectorpb.ExportTraceServiceRequest
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &collector{addr: listener.Addr().String()}
	s := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(s.Stop)
	return c
}

func (c *collector) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, req)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// spans are those that have arrived, by name, and all that is known of them as a text.
func (c *collector) spans() (byName map[string][]*tracepb.Span, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	byName = map[string][]*tracepb.Span{}
	for _, req := range c.requests {
		text += prototext.Format(req)
		for _, resource := range req.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					byName[span.Name] = append(byName[span.Name], span)
				}
			}
		}
	}
	return byName, text
}

func attribute(span *tracepb.Span, name string) bool {
	return slices.ContainsFunc(span.Attributes, func(a *commonpb.KeyValue) bool { return a.Key == name })
}

// Calls are traced in each mode, with what a change waited for, and without whom they are about. What is recorded when
// the server stops is sent.
func TestTraces(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"embedded": {"--data=" + testproc.TempDir(t) + "/plusone.db"},
		"sharded":  shardedArgs(redistest.Start(t, redistest.AppendFsyncAlways()).URL(), pgtest.NewDatabase(t)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCollector(t)
			s := start(t, append(args, "--trace-endpoint=http://"+c.addr, "--trace-ratio=1", "--log-level=debug")...)
			ctx := t.Context()
			counters := dial(t, s)
			_, err := counters.Increment(ctx, "secret-key", 1)
			must(t, err)
			_, err = counters.Like(ctx, "secret-key", "secret-actor")
			must(t, err)
			_, err = counters.Get(ctx, "secret-key", client.Fresh())
			must(t, err)
			conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			must(t, err)
			defer func() { must(t, conn.Close()) }()
			_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			must(t, err)
			s.Terminate()

			spans, text := c.spans()
			if len(spans) != 3 {
				t.Errorf("spans of other calls than those that were made:\n%s", text)
			}
			for _, method := range []string{"Increment", "Like", "Get"} {
				of := spans["plusone.v1.CounterService/"+method]
				if len(of) != 1 {
					t.Fatalf("%d spans of %s:\n%s", len(of), method, text)
				}
				change := method != "Get"
				for _, name := range []string{"plusone.outcome", "plusone.batch.wait_seconds", "plusone.batch.changes"} {
					if attribute(of[0], name) != change {
						t.Errorf("the span of %s has %s: %t", method, name, !change)
					}
				}
				if change && (len(of[0].Events) != 1 || of[0].Events[0].TimeUnixNano < of[0].StartTimeUnixNano ||
					of[0].Events[0].TimeUnixNano > of[0].EndTimeUnixNano) {
					t.Errorf("the batch of %s was sent at another time: %v", method, of[0])
				}
			}
			if strings.Contains(text, "secret") {
				t.Errorf("a span has a key or an actor:\n%s", text)
			}
			if !strings.Contains(text, `"`+name+`"`) || !strings.Contains(text, "service.version") {
				t.Errorf("spans do not say where they come from:\n%s", text)
			}
			if line := s.Logged("call"); line == nil || line["trace_id"] == "" {
				t.Errorf("calls are logged without their traces: %v", line)
			}
		})
	}
}

// A collector that is not there costs no call, and does not hold up a stop for long.
func TestTracesWithoutACollector(t *testing.T) {
	t.Parallel()
	port, err := testproc.ReservePort()
	must(t, err)
	defer func() { must(t, port.Release()) }()
	s := start(t, "--data="+testproc.TempDir(t)+"/plusone.db", "--trace-endpoint=http://"+port.Addr(), "--trace-ratio=1")
	_, err = dial(t, s).Increment(t.Context(), "k", 1)
	must(t, err)
	s.Terminate()
}

func TestObserveFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ flag, want string }{
		{"--trace-endpoint=collector:4317", "--trace-endpoint is not valid"},
		{"--trace-endpoint=http://127.0.0.1", "--trace-endpoint is not valid"},
		{"--trace-endpoint=http://127.0.0.1:4317/v1/traces", "--trace-endpoint is not valid"},
		{"--trace-endpoint=https://me:hunter2@127.0.0.1:4317", "OTEL_EXPORTER_OTLP_HEADERS"},
		{"--trace-endpoint=http://collector:4317", "not a loopback address"},
		{"--trace-ratio=0.5", "has no effect without --trace-endpoint"},
		{"--audit-log=", "--audit-log must name a file"},
		{"--audit-log=/", "--audit-log"},
	} {
		output, code := execute(t, nil, "serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0",
			"--data="+filepath.Join(testproc.TempDir(t), "plusone.db"), tc.flag)
		if code == 0 || !strings.Contains(output, tc.want) || strings.Contains(output, "hunter2") {
			t.Errorf("%s: code %d\n%s", tc.flag, code, output)
		}
	}
	output, code := execute(t, nil, "serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--trace-endpoint=http://127.0.0.1:4317",
		"--trace-ratio=1.5")
	if code != 2 || !strings.Contains(output, "--trace-ratio is 1.5") {
		t.Errorf("code %d\n%s", code, output)
	}
}

// The audit log is there from the start, so that it is known then whether it can be written.
func TestAuditLogIsOpenedAtStart(t *testing.T) {
	t.Parallel()
	dir := testproc.TempDir(t)
	s := start(t, "--data="+dir+"/plusone.db", "--audit-log="+dir+"/audit.log")
	info, err := os.Stat(dir + "/audit.log")
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
	s.Terminate()
}
