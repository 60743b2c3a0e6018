package server

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

const (
	// arrivalTick is how often it is looked for requests that do not arrive.
	arrivalTick = 250 * time.Millisecond
	// lateAfter is how long a request may take to arrive, in ticks, before it counts as late: more than a largest batch
	// takes on any line that a service would use.
	lateAfter = int64(time.Second / arrivalTick)
	// maxArrival is how long a request may take to arrive, in ticks.
	maxArrival = int64(20 * time.Second / arrivalTick)
	// maxLate is how many late requests are waited for. Each may hold up to maxMessageBytes.
	maxLate = 100
	// arrivalLists are that many so that calls seldom wait for each other.
	arrivalLists = 16
)

// arrivals are the calls whose requests have not arrived. A client may send a request as slowly as it likes, or never,
// and gRPC holds what there is of it for as long as the client says. So what does not arrive in time is ended, and sooner, the
// oldest first, if there is too much of that.
type arrivals struct {
	lists [arrivalLists]arrivalList
	tick  atomic.Int64
	shed  prometheus.Counter
}

// arrivalList is a list of calls by when they began, the first first.
type arrivalList struct {
	mu sync.Mutex
	arrival
}

// arrival is a call whose request has not arrived. A list's own is before the first and after the last.
type arrival struct {
	list       *arrivalList
	prev, next *arrival
	stream     ender
	request    any
	fault      error // what is wrong with the request, by the codec
	began      int64 // tick
	over       bool  // it has left the list
	ended      bool  // by end
}

// ender is a stream of gRPC's transport: its end ends whoever waits for a message of it.
type ender interface {
	WriteStatus(*status.Status) error
}

// errNotArrived is the error of a call that was ended.
var errNotArrived error = &rpcError{status: statusOverloaded}

func newArrivals(m *metrics) *arrivals {
	a := &arrivals{shed: m.shed.WithLabelValues(limitArrivals)}
	for i := range a.lists {
		l := &a.lists[i]
		l.prev, l.next = &l.arrival, &l.arrival
	}
	return a
}

// await receives a request, by a function that returns once it has arrived, or once the call has ended. It is given the
// arrival, into whose request the codec decodes. If the call was ended here, that is the error, whatever has arrived since.
func (a *arrivals) await(ctx context.Context, request any, receive func(any) error) error {
	stream, ok := grpc.ServerTransportStreamFromContext(ctx).(ender)
	if !ok {
		call := &arrival{request: request}
		return call.outcome(receive(call))
	}
	l := &a.lists[rand.Uint32()%arrivalLists]
	call := &arrival{list: l, stream: stream, request: request, began: a.tick.Load()}
	l.mu.Lock()
	call.prev, call.next = l.prev, &l.arrival
	call.prev.next, call.next.prev = call, call
	l.mu.Unlock()

	err := receive(call)

	l.mu.Lock()
	defer l.mu.Unlock()
	if call.ended {
		return errNotArrived
	}
	call.leave()
	return call.outcome(err)
}

// outcome is the error of receiving the request, if any, or else what is wrong with it.
func (c *arrival) outcome(err error) error {
	if err != nil {
		return err
	}
	return c.fault
}

// watch ends calls until done is closed.
func (a *arrivals) watch(done <-chan struct{}) {
	ticker := time.NewTicker(arrivalTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			a.look(a.tick.Add(1))
		case <-done:
			return
		}
	}
}

// look ends the calls that have waited for too long, and the oldest of those that are too many.
func (a *arrivals) look(now int64) {
	var late []*arrival
	for i := range a.lists {
		l := &a.lists[i]
		l.mu.Lock()
		for call := l.next; call != &l.arrival && now-call.began > lateAfter; call = call.next {
			late = append(late, call)
		}
		l.mu.Unlock()
	}
	slices.SortFunc(late, func(a, b *arrival) int { return cmp.Compare(a.began, b.began) })
	for i, call := range late {
		if len(late)-i <= maxLate && now-call.began <= maxArrival {
			break
		}
		call.end(a.shed)
	}
}

// leave takes the call out of its list, which is locked.
func (c *arrival) leave() {
	c.over = true
	c.prev.next, c.next.prev = c.next, c.prev
}

// end ends the call, unless its request has arrived.
func (c *arrival) end(shed prometheus.Counter) {
	c.list.mu.Lock()
	waits := !c.over
	if waits {
		c.ended = true
		c.leave()
	}
	c.list.mu.Unlock()
	if waits {
		shed.Inc()
		_ = c.stream.WriteStatus(statusOverloaded) // it fails if the client has gone
	}
}
