package server

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

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
)

// arrivals are the calls whose requests have not arrived. A client may send a request as slowly as it likes, or never,
// and gRPC holds what there is of it for as long as the client says. So what does not arrive in time is ended, and sooner, the
// oldest first, if there is too much of that.
//
// Each call says in a word of its own that it waits, so that calls do not wait for each other here.
type arrivals struct {
	tick atomic.Int64 // from 1
	shed prometheus.Counter

	mu sync.Mutex
	// known are all that there are. Those that nobody uses any more are dropped at each tick.
	known []weak.Pointer[arrival]
}

// arrival is a request that has to arrive. It is used again for others.
type arrival struct {
	// state is idle, ended, or the tick at which the request began to be waited for. Who changes it from that tick has the
	// arrival: the call, to go on, or look, to end the call. What look has found late it cannot mistake for another request that
	// uses the arrival by then, as ticks only grow.
	state   atomic.Int64
	stream  ender
	request any
	fault   error // what is wrong with the request, by the codec
}

// States of an arrival.
const (
	idle  = 0
	ended = -1
)

// ender is a stream of gRPC's transport: its end ends whoever waits for a message of it.
type ender interface {
	WriteStatus(*status.Status) error
}

// errNotArrived is the error of a call that was ended.
var errNotArrived error = &rpcError{status: statusOverloaded}

func newArrivals(m *metrics) *arrivals {
	a := &arrivals{shed: m.shed.WithLabelValues(limitArrivals)}
	a.tick.Store(1)
	return a
}

// know makes an arrival known, which it must be before it is used.
func (a *arrivals) know(arrival *arrival) {
	pointer := weak.Make(arrival)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known = append(a.known, pointer)
}

// await receives a request, by a function that returns once it has arrived, or once the call has ended. It is given the
// arrival, into whose request the codec decodes. If the call was ended here, that is the error, whatever has arrived since.
func (a *arrivals) await(ctx context.Context, call *arrival, request any, receive func(any) error) (err error) {
	call.request = request
	if stream, ok := grpc.ServerTransportStreamFromContext(ctx).(ender); ok {
		began := a.tick.Load()
		call.stream = stream
		call.state.Store(began)
		defer func() {
			if !call.state.CompareAndSwap(began, idle) {
				err = errNotArrived
			}
		}()
	}
	if err := receive(call); err != nil {
		return err
	}
	return call.fault
}

// reusable reports whether another request may use the arrival, and forgets this one if so. One that was ended may still be in
// the hands of look.
func (c *arrival) reusable() bool {
	if c.state.Load() == ended {
		return false
	}
	c.stream, c.request, c.fault = nil, nil, nil
	return true
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
	late := a.late(now)
	slices.SortFunc(late, func(a, b lateArrival) int { return cmp.Compare(a.began, b.began) })
	for i, call := range late {
		if len(late)-i <= maxLate && now-call.began <= maxArrival {
			break
		}
		call.end(a.shed)
	}
}

// lateArrival is an arrival that was found late.
type lateArrival struct {
	*arrival
	began int64
}

// late finds those that are late.
func (a *arrivals) late(now int64) (late []lateArrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known = slices.DeleteFunc(a.known, func(p weak.Pointer[arrival]) bool {
		call := p.Value()
		if call == nil {
			return true
		}
		if began := call.state.Load(); began > idle && now-began > lateAfter {
			late = append(late, lateArrival{call, began})
		}
		return false
	})
	return late
}

// end ends the call, unless its request has arrived.
func (l lateArrival) end(shed prometheus.Counter) {
	if l.state.CompareAndSwap(l.began, ended) {
		shed.Inc()
		_ = l.stream.WriteStatus(statusOverloaded) // it fails if the client has gone
	}
}
