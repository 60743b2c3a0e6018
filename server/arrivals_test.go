package server

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// slowStream is a stream whose message arrives when the test says, or which is ended.
type slowStream struct {
	grpc.ServerTransportStream
	once    sync.Once
	arrived chan struct{}
	ended   bool
}

func (s *slowStream) WriteStatus(*status.Status) error {
	s.once.Do(func() {
		s.ended = true
		close(s.arrived)
	})
	return nil
}

// What does not arrive within 20 s is ended, and what is late is ended sooner if there is much of it, the oldest first. What
// has arrived is not ended, and what was ended does not arrive.
func TestRequestsMustArrive(t *testing.T) {
	t.Parallel()
	a := newArrivals(newMetrics())
	var streams []*slowStream
	var answers []chan error
	begin := func(n int) {
		for range n {
			s, answer := &slowStream{arrived: make(chan struct{})}, make(chan error, 1)
			streams, answers = append(streams, s), append(answers, answer)
			listed := make(chan struct{})
			go func() {
				answer <- a.await(grpc.NewContextWithServerTransportStream(context.Background(), s), nil, func(any) error {
					close(listed)
					<-s.arrived
					return nil
				})
			}()
			<-listed
		}
	}
	ticks := func(n int64) {
		for range n {
			a.look(a.tick.Add(1))
		}
	}
	wantEnded := func(want int) {
		t.Helper()
		if n := value(t, a.shed); int(n) != want {
			t.Fatalf("%v calls were ended, want %d", n, want)
		}
	}
	begin(10)
	ticks(1)
	begin(maxLate)
	close(streams[3].arrived)
	if err := <-answers[3]; err != nil {
		t.Errorf("a request that arrived: %v", err)
	}
	ticks(lateAfter)
	wantEnded(0)
	ticks(1) // the first are late for long, and now all are
	wantEnded(9)
	for i := range 10 {
		if streams[i].ended != (i != 3) {
			t.Errorf("call %d was ended: %v", i, streams[i].ended)
		}
		if i != 3 {
			wantFailure(t, <-answers[i], failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true})
		}
	}
	ticks(maxArrival - lateAfter - 1)
	wantEnded(9)
	ticks(1)
	wantEnded(9 + maxLate)
	for i := range a.lists {
		if l := &a.lists[i]; l.next != &l.arrival || l.prev != &l.arrival {
			t.Errorf("list %d is not empty", i)
		}
	}
}

// Streams are bounded over all connections.
func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	r.server.calls.streams.Store(maxOpenStreams)
	watch := func() error {
		stream, err := healthpb.NewHealthClient(r.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	wantFailure(t, watch(), failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true})
	r.server.calls.streams.Store(maxOpenStreams - 1)
	if err := watch(); err != nil {
		t.Error(err)
	}
}
