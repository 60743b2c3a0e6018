package client_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// epoch is where the fake store's clock stands; it ticks a second with every change.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// readRequest is what a Get and a BatchGet have in common.
type readRequest interface {
	GetMaxAge() *durationpb.Duration
	GetMinAsOf() *timestamppb.Timestamp
}

// fakeStore counts, exactly once per request id. It outlives the servers in front of it.
type fakeStore struct {
	plusonev1.UnimplementedCounterServiceServer

	mu     sync.Mutex
	counts map[string]int64
	likes  map[likePair]time.Time
	seen   map[string]bool
	idle   map[string]bool // ids of likes that changed nothing
	full   string          // key of a total that would overflow
	peak   int64           // largest delta of a batch
	clock  time.Time
	ids    []string      // of every attempt to change that arrived
	reads  []readRequest // that arrived
}

func newFakeStore() *fakeStore {
	return &fakeStore{
		counts: map[string]int64{}, likes: map[likePair]time.Time{}, seen: map[string]bool{}, idle: map[string]bool{},
		clock: epoch,
	}
}

func (s *fakeStore) Increment(_ context.Context, r *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	outcome, asOf := s.apply(r.RequestId, r.Actor, []*plusonev1.BatchEntry{{Key: r.Key, Delta: r.GetDelta()}})
	return &plusonev1.IncrementResponse{Outcome: outcome, AsOf: asOf}, nil
}

func (s *fakeStore) BatchIncrement(_ context.Context, r *plusonev1.BatchIncrementRequest) (*plusonev1.BatchIncrementResponse, error) {
	if err := s.examine(r.Entries); err != nil {
		return nil, err
	}
	outcome, asOf := s.apply(r.RequestId, "", r.Entries)
	return &plusonev1.BatchIncrementResponse{Outcome: outcome, AsOf: asOf}, nil
}

func (s *fakeStore) examine(entries []*plusonev1.BatchEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		if e.Key == s.full {
			_, err := refuseWith(codes.OutOfRange, reason("TOTAL_OVERFLOW"))(context.Background(), nil)
			return err
		}
		s.peak = max(s.peak, e.Delta, -e.Delta)
	}
	return nil
}

// largest returns the largest delta that came in a batch, either way.
func (s *fakeStore) largest() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak
}

// apply has a single once-per period, which never ends.
func (s *fakeStore) apply(id, actor string, entries []*plusonev1.BatchEntry) (plusonev1.Outcome, *timestamppb.Timestamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[id] {
		return plusonev1.Outcome_OUTCOME_DUPLICATE, timestamppb.New(s.clock)
	}
	once := "once " + actor + " " + entries[0].Key
	if actor != "" && s.seen[once] {
		return plusonev1.Outcome_OUTCOME_ALREADY_COUNTED, timestamppb.New(s.clock)
	}
	s.seen[id], s.seen[once] = true, true
	for _, e := range entries {
		s.counts[e.Key] += e.Delta
	}
	s.clock = s.clock.Add(time.Second)
	return plusonev1.Outcome_OUTCOME_APPLIED, timestamppb.New(s.clock)
}

type likePair struct{ key, actor string }

func (s *fakeStore) Like(_ context.Context, r *plusonev1.LikeRequest) (*plusonev1.LikeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.setLike(r.RequestId, likePair{r.Key, r.Actor}, true)
	count := s.counts[r.Key]
	return &plusonev1.LikeResponse{Changed: changed, Count: &count, AsOf: timestamppb.New(s.clock)}, nil
}

func (s *fakeStore) Unlike(_ context.Context, r *plusonev1.UnlikeRequest) (*plusonev1.UnlikeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.setLike(r.RequestId, likePair{r.Key, r.Actor}, false)
	count := s.counts[r.Key]
	return &plusonev1.UnlikeResponse{Changed: changed, Count: &count, AsOf: timestamppb.New(s.clock)}, nil
}

// setLike returns whether the first call with this id changed anything.
func (s *fakeStore) setLike(id string, pair likePair, like bool) (changed bool) {
	if s.seen[id] {
		return !s.idle[id]
	}
	_, liked := s.likes[pair]
	s.seen[id], s.idle[id] = true, liked == like
	if liked == like {
		return false
	}
	s.clock = s.clock.Add(time.Second)
	if like {
		s.likes[pair] = s.clock
		s.counts[pair.key]++
	} else {
		delete(s.likes, pair)
		s.counts[pair.key]--
	}
	return true
}

func (s *fakeStore) BatchGetLikes(_ context.Context, r *plusonev1.BatchGetLikesRequest) (*plusonev1.BatchGetLikesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &plusonev1.BatchGetLikesResponse{}
	for _, key := range r.Keys {
		state := &plusonev1.LikeState{Key: key}
		if at, liked := s.likes[likePair{key, r.Actor}]; liked {
			state.Liked, state.LikedAt = true, timestamppb.New(at)
		}
		resp.Likes = append(resp.Likes, state)
	}
	return resp, nil
}

func (s *fakeStore) Get(_ context.Context, r *plusonev1.GetRequest) (*plusonev1.GetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &plusonev1.GetResponse{Count: s.read(r.Key)}, nil
}

func (s *fakeStore) BatchGet(_ context.Context, r *plusonev1.BatchGetRequest) (*plusonev1.BatchGetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &plusonev1.BatchGetResponse{}
	for _, key := range r.Keys {
		resp.Counts = append(resp.Counts, s.read(key))
	}
	return resp, nil
}

func (s *fakeStore) read(key string) *plusonev1.Count {
	return &plusonev1.Count{Key: key, Count: s.counts[key], Likes: 0, AsOf: timestamppb.New(s.clock)}
}

func (s *fakeStore) record(req any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := req.(interface{ GetRequestId() string }); ok {
		s.ids = append(s.ids, r.GetRequestId())
	} else if r, ok := req.(readRequest); ok {
		s.reads = append(s.reads, r)
	}
}

// attemptIDs returns the request ids of all attempts that arrived.
func (s *fakeStore) attemptIDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.ids...)
}

func (s *fakeStore) total(key string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[key]
}

func (s *fakeStore) lastRead() readRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[len(s.reads)-1]
}

// fault is what becomes of one attempt. apply does what the attempt asks for.
type fault func(ctx context.Context, apply func() (any, error)) (any, error)

// fakeServer serves a store on a real listener and meets the faults of its script, one an attempt.
type fakeServer struct {
	addr   string
	health *health.Server
	calls  atomic.Int64

	grpc  *grpc.Server
	conns *connections

	mu     sync.Mutex
	script []fault
}

type serverOptions struct {
	network, addr string
	creds         credentials.TransportCredentials
}

// serve starts a server on loopback, which stops with the test.
func serve(t testing.TB, store *fakeStore, script ...fault) *fakeServer {
	t.Helper()
	return serveOn(t, serverOptions{network: "tcp", addr: "127.0.0.1:0"}, store, script...)
}

func serveOn(t testing.TB, o serverOptions, store *fakeStore, script ...fault) *fakeServer {
	t.Helper()
	listener, err := net.Listen(o.network, o.addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeServer{
		addr:   listener.Addr().String(),
		health: health.NewServer(),
		conns:  &connections{Listener: listener, open: map[net.Conn]bool{}},
		script: script,
	}
	options := []grpc.ServerOption{grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			s.calls.Add(1)
			store.record(req)
			apply := func() (any, error) { return handler(ctx, req) }
			if f := s.nextFault(); f != nil {
				return f(ctx, apply)
			}
			return apply()
		})}
	if o.creds != nil {
		options = append(options, grpc.Creds(o.creds))
	}
	s.grpc = grpc.NewServer(options...)
	plusonev1.RegisterCounterServiceServer(s.grpc, store)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := s.grpc.Serve(s.conns); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		s.grpc.Stop()
		<-served
	})
	return s
}

func (s *fakeServer) nextFault() fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.script) == 0 {
		return nil
	}
	f := s.script[0]
	s.script = s.script[1:]
	return f
}

func (s *fakeServer) then(faults ...fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, faults...)
}

func (s *fakeServer) setServing(serving bool) {
	state := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		state = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", state)
}

// loseAnswer applies the change and cuts the client's connections before it can be told.
func (s *fakeServer) loseAnswer(_ context.Context, apply func() (any, error)) (any, error) {
	resp, err := apply()
	s.conns.cut()
	return resp, err
}

// answerNever applies the change and then waits until the client has given the attempt up.
func answerNever(ctx context.Context, apply func() (any, error)) (any, error) {
	_, _ = apply()
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// refuseWith changes nothing and answers an error.
func refuseWith(code codes.Code, details ...protoadapt.MessageV1) fault {
	return func(context.Context, func() (any, error)) (any, error) {
		s, err := status.New(code, "refused").WithDetails(details...)
		if err != nil {
			return nil, err
		}
		return nil, s.Err()
	}
}

func reason(r string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Domain: "plusone", Reason: r}
}

func retryIn(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
}

// connections is a listener that can cut what it accepted.
type connections struct {
	net.Listener

	mu   sync.Mutex
	open map[net.Conn]bool
}

func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = true
	return conn, nil
}

// cut closes all connections that are open.
func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close()
	}
	clear(c.open)
}
