package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// storeTime is the store's clock in tests where it stands still.
var storeTime = time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)

// scriptedStore does what its functions say and records what it was asked. Without a function it applies
// every change, reads every key as the length of its name, and has no likes.
type scriptedStore struct {
	apply  func(context.Context, counter.Change) (counter.Receipt, error)
	counts func(context.Context, []string) []counter.Reading
	likes  func(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error)

	mu      sync.Mutex
	changes []counter.Change
	reads   [][]string
}

func (s *scriptedStore) Apply(ctx context.Context, c counter.Change) (counter.Receipt, error) {
	s.mu.Lock()
	s.changes = append(s.changes, c)
	s.mu.Unlock()
	if s.apply != nil {
		return s.apply(ctx, c)
	}
	return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}, nil
}

func (s *scriptedStore) Counts(ctx context.Context, keys []string) []counter.Reading {
	s.mu.Lock()
	s.reads = append(s.reads, slices.Clone(keys))
	s.mu.Unlock()
	if s.counts != nil {
		return s.counts(ctx, keys)
	}
	return readAll(keys, func(key string) int64 { return int64(len(key)) }, storeTime)
}

func (s *scriptedStore) Likes(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error) {
	if s.likes != nil {
		return s.likes(ctx, actor, keys)
	}
	return make([]counter.LikeState, len(keys)), nil
}

func (s *scriptedStore) lastChange(t *testing.T) counter.Change {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.changes) == 0 {
		t.Fatal("the store saw no change")
	}
	return s.changes[len(s.changes)-1]
}

func (s *scriptedStore) readCalls() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reads)
}

func readAll(keys []string, value func(string) int64, asOf time.Time) []counter.Reading {
	readings := make([]counter.Reading, len(keys))
	for i, key := range keys {
		readings[i].Count = counter.Count{Key: key, Value: value(key), AsOf: asOf}
	}
	return readings
}

func failAll(keys []string, err error) []counter.Reading {
	readings := make([]counter.Reading, len(keys))
	for i := range keys {
		readings[i].Err = err
	}
	return readings
}

// safeBuffer is a log that may be read while it is written.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// running is a server on loopback with a client.
type running struct {
	server   *Server
	client   plusonev1.CounterServiceClient
	reports  plusonev1.ReportServiceClient
	conn     *grpc.ClientConn
	http     string
	registry *prometheus.Registry
	log      *safeBuffer
	served   chan error
}

func start(t testing.TB, store Store, config Config) *running {
	t.Helper()
	return startWith(t, store, &scriptedReports{}, config)
}

func startWith(t testing.TB, store Store, reports Reports, config Config) *running {
	t.Helper()
	return startLogging(t, store, reports, config, slog.LevelInfo)
}

// startLogging starts a server with a log of a level, which config has no say in.
func startLogging(t testing.TB, store Store, reports Reports, config Config, level slog.Level) *running {
	t.Helper()
	r := &running{registry: prometheus.NewRegistry(), log: &safeBuffer{}, served: make(chan error, 1)}
	config.Registry = r.registry
	config.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: level}))
	var err error
	if r.server, err = New(store, reports, config); err != nil {
		t.Fatal(err)
	}
	grpcListener, httpListener := listen(t), listen(t)
	r.http = "http://" + httpListener.Addr().String()
	go func() { r.served <- r.server.Serve(grpcListener, httpListener) }()
	r.conn, err = grpc.NewClient(grpcListener.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.client = plusonev1.NewCounterServiceClient(r.conn)
	r.reports = plusonev1.NewReportServiceClient(r.conn)
	t.Cleanup(func() {
		_ = r.conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = r.server.Shutdown(ctx) // a test that cares looks at it itself
	})
	return r
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newService is a counterService without a network, for tests that need the time to be their own.
func newService(t testing.TB, store Store, config Config) *counterService {
	t.Helper()
	config, err := config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics()
	log := newCallLog(slog.New(slog.DiscardHandler), false, m)
	cache, err := newCountCache(store, config.CacheBytes, config.RequestTimeout, config.MaxInFlight, m, log, deadline.NewTimers())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cache.close(context.Background()) })
	deadlines := deadline.NewTimers()
	gate, err := newGate(config, m, deadlines)
	if err != nil {
		t.Fatal(err)
	}
	return &counterService{store: store, cache: cache, config: config, metrics: m, gate: gate, deadlines: deadlines}
}

// entryOf is an entry of the cache.
func entryOf(t testing.TB, key string, c counter.Count, began, ended time.Duration) *entry {
	t.Helper()
	e, err := newEntry(key, c, began, ended)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// getMessage is Get, with the message that is sent.
func getMessage(ctx context.Context, s *counterService, req *plusonev1.GetRequest) (*plusonev1.GetResponse, error) {
	answer, err := s.get(ctx, req)
	return decoded(s, answer, err, &plusonev1.GetResponse{})
}

// incrementMessage is Increment, with the message that is sent.
func incrementMessage(ctx context.Context, s *counterService, req *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	answer, err := s.increment(ctx, req)
	return decoded(s, answer, err, &plusonev1.IncrementResponse{})
}

// likeMessage is Like, with the message that is sent.
func likeMessage(ctx context.Context, s *counterService, req *plusonev1.LikeRequest) (*plusonev1.LikeResponse, error) {
	answer, err := s.like(ctx, req)
	return decoded(s, answer, err, &plusonev1.LikeResponse{})
}

// unlikeMessage is Unlike, with the message that is sent.
func unlikeMessage(ctx context.Context, s *counterService, req *plusonev1.UnlikeRequest) (*plusonev1.UnlikeResponse, error) {
	answer, err := s.unlike(ctx, req)
	return decoded(s, answer, err, &plusonev1.UnlikeResponse{})
}

// batchGetMessage is BatchGet, with the message that is sent.
func batchGetMessage(ctx context.Context, s *counterService, req *plusonev1.BatchGetRequest) (*plusonev1.BatchGetResponse, error) {
	answers, err := s.batchGet(ctx, req)
	return decoded(s, answers, err, &plusonev1.BatchGetResponse{})
}

// decoded is the message of what a method answers.
func decoded[Message proto.Message](s *counterService, answer any, err error, m Message) (Message, error) {
	var none Message
	if err != nil {
		return none, err
	}
	data, err := newCodec(s.metrics).Marshal(answer)
	if err != nil {
		return none, err
	}
	defer data.Free()
	return m, proto.Unmarshal(data.Materialize(), m)
}

func value(t testing.TB, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// failure is what the tests look at in an error.
type failure struct {
	code   codes.Code
	reason string
	fields []string
	retry  bool
}

func failureOf(t *testing.T, err error) failure {
	t.Helper()
	if err == nil {
		t.Fatal("the call succeeded")
	}
	st, ok := status.FromError(err)
	if !ok {
		t.Fatalf("%v is not a status", err)
	}
	f := failure{code: st.Code()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Domain != "plusone" {
				t.Errorf("domain %q", d.Domain)
			}
			f.reason = d.Reason
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				f.fields = append(f.fields, v.Field)
			}
		case *errdetails.RetryInfo:
			f.retry = d.RetryDelay.AsDuration() > 0
		default:
			t.Errorf("unexpected detail %v", d)
		}
	}
	return f
}

func wantFailure(t *testing.T, err error, want failure) {
	t.Helper()
	got := failureOf(t, err)
	if got.code != want.code || got.reason != want.reason || got.retry != want.retry || !slices.Equal(got.fields, want.fields) {
		t.Errorf("got %+v (%v)\nwant %+v", got, err, want)
	}
}

var errDriver = errors.New("dial tcp 10.1.2.3:6379: password hunter2")
