package bench_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/storetest"
)

// connections of a load, among which calls are spread.
const connections = 4

// target is a server under load.
type target struct {
	name string
	addr string
	pid  int
	// store is the process of its Redis or Postgres, 0 if it has none.
	store int
}

// call is one call of a load, made by a caller that has its own random numbers.
type call func(ctx context.Context, c plusonev1.CounterServiceClient, r *rand.Rand) error

// side is one of two that are compared.
type side struct {
	target
	call call
	// each is how many operations a call is.
	each int
	// inFlight is the number of callers, each of which has one call under way.
	inFlight int
}

// sample is what one run has measured.
type sample struct {
	perSecond float64
	// server and store are CPU time for an operation.
	server, store time.Duration
	p50, p99      time.Duration // of calls
}

// run puts a load on a target for a while.
func (s side) run(t testing.TB) sample {
	t.Helper()
	return s.runFor(t, *secondsFlag)
}

func (s side) runFor(t testing.TB, length time.Duration) sample {
	t.Helper()
	clients := make([]plusonev1.CounterServiceClient, connections)
	for i := range clients {
		conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		clients[i] = plusonev1.NewCounterServiceClient(conn)
	}
	var measuring, stopped atomic.Bool
	var answered atomic.Int64
	took := make([][]time.Duration, s.inFlight)
	failed := make(chan error, s.inFlight)
	var group sync.WaitGroup
	for i := range s.inFlight {
		group.Go(func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), uint64(i)))
			for !stopped.Load() {
				began := time.Now()
				if err := s.call(context.Background(), clients[i%connections], r); err != nil {
					failed <- err
					return
				}
				if measuring.Load() {
					took[i] = append(took[i], time.Since(began))
					answered.Add(1)
				}
			}
		})
	}
	wait(*warmFlag)
	server, store, began := cpuTime(t, s.pid), cpuTime(t, s.store), time.Now()
	measuring.Store(true)
	wait(length)
	for answered.Load() == 0 && len(failed) == 0 { // on a machine that is too busy for a short run
		wait(*warmFlag)
	}
	measuring.Store(false)
	elapsed := time.Since(began)
	server, store = cpuTime(t, s.pid)-server, cpuTime(t, s.store)-store
	stopped.Store(true)
	group.Wait()
	select {
	case err := <-failed:
		t.Fatalf("%s: %v", s.name, err)
	default:
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	ops := float64(len(all) * s.each)
	return sample{
		perSecond: ops / elapsed.Seconds(),
		server:    time.Duration(float64(server) / ops), store: time.Duration(float64(store) / ops),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}
}

// wait is how long something is measured.
func wait(d time.Duration) { <-time.After(d) }

func keyName(i int) string { return fmt.Sprintf("views/post:%07d", i) }

// increment changes one of so many keys.
func increment(keys int, withID bool) call {
	names := keyNames(keys)
	return func(ctx context.Context, c plusonev1.CounterServiceClient, r *rand.Rand) error {
		req := &plusonev1.IncrementRequest{Key: names[r.IntN(keys)]}
		delta := int64(1)
		req.Delta = &delta
		if withID {
			req.RequestId = storetest.NewID(time.Now())
		}
		_, err := c.Increment(ctx, req)
		return err
	}
}

func keyNames(keys int) []string {
	names := make([]string, keys)
	for i := range names {
		names[i] = keyName(i)
	}
	return names
}
