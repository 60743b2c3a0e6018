package server

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// numCodes is how many codes gRPC has. They are numbered from 0.
const numCodes = int(codes.Unauthenticated) + 1

// latencyNanos are latencyBuckets in nanoseconds.
var latencyNanos = func() (bounds [numLatencies]int64) {
	for i, seconds := range latencyBuckets {
		bounds[i] = int64(seconds * float64(time.Second))
	}
	return bounds
}()

// calls counts calls by method, under the names and labels of go-grpc-middleware's metrics. Those look up each counter by its
// labels on each call, which took a tenth of the CPU of a read from the cache. Here a call adds to a few numbers of its
// method, and a scrape makes metrics of them.
type calls struct {
	started, handled, received, sent, seconds *prometheus.Desc

	// methods are by full name, all there are. They do not change once the server serves.
	methods map[string]*methodCalls
}

// methodCalls are the calls of a method. Of a call without a stream, the request is there when it begins, and an
// answer is sent if it ends well.
type methodCalls struct {
	name    string
	labels  []string // type, service, method
	streams bool
	rule    *rule // who may call it; nil is nobody. Of no effect where everyone may call
	admin   bool  // of AdminService

	started        atomic.Uint64
	handled        [numCodes]atomic.Uint64
	nanos          atomic.Int64
	took           [numLatencies + 1]atomic.Uint64 // by bucket, not cumulated
	received, sent atomic.Uint64                   // messages of streams
}

func newCalls() *calls {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		labels = append([]string{"grpc_type", "grpc_service", "grpc_method"}, labels...)
		return prometheus.NewDesc("plusone_grpc_server_"+name, help, labels, nil)
	}
	return &calls{
		started:  desc("started_total", "Total number of RPCs started on the server."),
		handled:  desc("handled_total", "Total number of RPCs completed on the server, regardless of success or failure.", "grpc_code"),
		received: desc("msg_received_total", "Total number of RPC stream messages received on the server."),
		sent:     desc("msg_sent_total", "Total number of gRPC stream messages sent by the server."),
		seconds: desc("handling_seconds",
			"Histogram of response latency (seconds) of gRPC that had been application-level handled by the server."),
		methods: make(map[string]*methodCalls),
	}
}

// add prepares for a method, and returns what is counted of it. It may be there.
func (c *calls) add(service string, m grpc.MethodInfo) *methodCalls {
	name := "/" + service + "/" + m.Name
	if c.methods[name] == nil {
		c.methods[name] = &methodCalls{
			name:    name,
			labels:  []string{methodType(m), service, m.Name},
			streams: m.IsClientStream || m.IsServerStream,
			admin:   service == plusonev1.AdminService_ServiceDesc.ServiceName,
		}
	}
	return c.methods[name]
}

// addAll prepares for the methods of services.
func (c *calls) addAll(services map[string]grpc.ServiceInfo) {
	for service, info := range services {
		for _, m := range info.Methods {
			c.add(service, m)
		}
	}
}

func methodType(m grpc.MethodInfo) string {
	switch {
	case m.IsClientStream && m.IsServerStream:
		return "bidi_stream"
	case m.IsClientStream:
		return "client_stream"
	case m.IsServerStream:
		return "server_stream"
	}
	return "unary"
}

// end counts a call that has ended.
func (m *methodCalls) end(err error, took time.Duration) {
	code := codes.OK
	if err != nil {
		code = sentCode(err)
	}
	m.handled[code].Add(1)
	m.nanos.Add(int64(took))
	bucket := 0
	for bucket < numLatencies && int64(took) > latencyNanos[bucket] {
		bucket++
	}
	m.took[bucket].Add(1)
}

// sentCode is the code that gRPC sends for the error of a handler.
func sentCode(err error) codes.Code {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	if int(st.Code()) >= numCodes {
		return codes.Unknown
	}
	return st.Code()
}

// Describe implements prometheus.Collector.
func (c *calls) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.started, c.handled, c.received, c.sent, c.seconds} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *calls) Collect(metrics chan<- prometheus.Metric) {
	for _, m := range c.methods {
		count := func(desc *prometheus.Desc, n uint64, labels []string) {
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
		}
		received, sent := m.started.Load(), m.handled[codes.OK].Load()
		if m.streams {
			received, sent = m.received.Load(), m.sent.Load()
		}
		count(c.started, m.started.Load(), m.labels)
		count(c.received, received, m.labels)
		count(c.sent, sent, m.labels)
		for code := range m.handled {
			count(c.handled, m.handled[code].Load(), append(m.labels[:3:3], codes.Code(code).String()))
		}
		var total uint64
		buckets := make(map[float64]uint64, numLatencies)
		for i := range m.took {
			total += m.took[i].Load()
			if i < numLatencies {
				buckets[latencyBuckets[i]] = total
			}
		}
		sum := time.Duration(m.nanos.Load()).Seconds()
		metrics <- prometheus.MustNewConstHistogram(c.seconds, total, sum, buckets, m.labels...)
	}
}

// countedStream counts the messages of a stream, and checks them if its caller may not do everything. Its methods are for
// one goroutine to receive, and one to send.
type countedStream struct {
	grpc.ServerStream
	method *methodCalls
	ctx    context.Context     // with its caller; nil is that of the stream
	check  func(req any) error // nil lets all messages pass
	first  *arrivals           // for the first message, which must arrive in time; nil afterwards
}

func (s *countedStream) Context() context.Context {
	if s.ctx != nil {
		return s.ctx
	}
	return s.ServerStream.Context()
}

func (s *countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.method.sent.Add(1)
	}
	return err
}

func (s *countedStream) RecvMsg(m any) error {
	first := s.first
	s.first = nil
	var err error
	if first != nil {
		call := &arrival{}
		first.know(call)
		err = first.await(s.ServerStream.Context(), call, m, s.ServerStream.RecvMsg)
	} else {
		err = s.ServerStream.RecvMsg(m)
	}
	if err != nil {
		return err
	}
	s.method.received.Add(1)
	if s.check != nil {
		return s.check(m)
	}
	return nil
}
