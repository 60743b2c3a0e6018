package server

import (
	"context"
	"runtime"
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
			waits := make(chan struct{})
			go func() {
				call := &arrival{}
				a.know(call)
				answer <- a.await(grpc.NewContextWithServerTransportStream(context.Background(), s), call, nil, func(any) error {
					close(waits)
					<-s.arrived
					return nil
				})
			}()
			<-waits
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
}

// An arrival that is used again for one request after the other is ended for the one that is late, and for no other.
func TestArrivalsAreUsedAgain(t *testing.T) {
	t.Parallel()
	a := newArrivals(newMetrics())
	var callers, ticker sync.WaitGroup
	done := make(chan struct{})
	ticker.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				a.look(a.tick.Add(1))
				runtime.Gosched()
			}
		}
	})
	const each = 300
	var streams [4][each]slowStream
	var failed [4][each]bool
	for caller := range streams {
		callers.Go(func() {
			call := &arrival{}
			a.know(call)
			for i := range each {
				s := &streams[caller][i]
				s.arrived = make(chan struct{})
				err := a.await(grpc.NewContextWithServerTransportStream(context.Background(), s), call, nil, func(any) error {
					if i%10 == 0 {
						<-s.arrived // until it is ended
					} else {
						runtime.Gosched()
					}
					return nil
				})
				failed[caller][i] = err != nil
				if reusable := call.reusable(); reusable == failed[caller][i] {
					t.Errorf("%v, and its arrival can be used again: %v", err, reusable)
				}
				if err != nil {
					call = &arrival{}
					a.know(call)
				}
			}
		})
	}
	callers.Wait()
	close(done)
	ticker.Wait()
	ended := 0
	for caller := range streams {
		for i := range each {
			if failed[caller][i] {
				ended++
			}
			if streams[caller][i].ended != failed[caller][i] {
				t.Errorf("request %d of caller %d: ended %v, failed %v", i, caller, streams[caller][i].ended, failed[caller][i])
			}
		}
	}
	if n := int(value(t, a.shed)); n != ended || n < len(streams)*each/10 {
		t.Errorf("%d calls were ended and %d failed", n, ended)
	}
}

// A request that arrives while it is found late has arrived, and the next one that uses its arrival is not taken for it.
func TestArrivesWhileFoundLate(t *testing.T) {
	t.Parallel()
	a := newArrivals(newMetrics())
	call, s := &arrival{}, &slowStream{arrived: make(chan struct{})}
	a.know(call)
	await := func(receive func(any) error) {
		t.Helper()
		if err := a.await(grpc.NewContextWithServerTransportStream(t.Context(), s), call, nil, receive); err != nil || s.ended {
			t.Fatalf("ended %v, %v", s.ended, err)
		}
	}
	var late []lateArrival
	await(func(any) error {
		late = a.late(a.tick.Add(lateAfter + 1))
		return nil
	})
	if len(late) != 1 {
		t.Fatalf("%d are late", len(late))
	}
	late[0].end(a.shed)
	await(func(any) error {
		late[0].end(a.shed)
		return nil
	})
}

// Arrivals that nobody uses any more take no memory.
func TestArrivalsAreForgotten(t *testing.T) {
	t.Parallel()
	a := newArrivals(newMetrics())
	kept := &arrival{}
	a.know(kept)
	for range 1_000 {
		a.know(&arrival{})
	}
	runtime.GC()
	a.look(a.tick.Add(1))
	if n := len(a.known); n != 1 {
		t.Errorf("%d arrivals are known", n)
	}
	runtime.KeepAlive(kept)
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
