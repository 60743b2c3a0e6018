package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// gatedStore holds every change until the gate is opened, and says when one has arrived.
func gatedStore() (store *scriptedStore, arrived chan struct{}, gate chan struct{}) {
	arrived, gate = make(chan struct{}, 1000), make(chan struct{})
	return &scriptedStore{apply: func(ctx context.Context, _ counter.Change) (counter.Receipt, error) {
		arrived <- struct{}{}
		select {
		case <-gate:
			return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}, nil
		case <-ctx.Done():
			return counter.Receipt{}, ctx.Err()
		}
	}}, arrived, gate
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	t.Parallel()
	store, arrived, gate := gatedStore()
	r := start(t, store, Config{MaxInFlight: 3, RequestTimeout: time.Minute})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k"}); err != nil {
				t.Error(err)
			}
		})
	}
	for range 3 {
		<-arrived
	}
	shed := failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true}
	_, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k"})
	wantFailure(t, err, shed)
	_, err = r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "k"})
	wantFailure(t, err, shed)
	if _, err := healthpb.NewHealthClient(r.conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a health check was refused: %v", err)
	}
	if n := value(t, r.server.cache.metrics.shed.WithLabelValues("requests")); n != 2 {
		t.Errorf("%v refusals counted", n)
	}
	close(gate)
	wg.Wait()
	for range 5 { // what was refused has left nothing behind
		if _, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k"}); err != nil {
			t.Error(err)
		}
	}
}

func TestItemsInFlightAreBounded(t *testing.T) {
	t.Parallel()
	store, arrived, gate := gatedStore()
	r := start(t, store, Config{MaxInFlightItems: counter.MaxEntries, RequestTimeout: time.Minute})
	batch := func(n int) *plusonev1.BatchIncrementRequest {
		req := &plusonev1.BatchIncrementRequest{}
		for i := range n {
			req.Entries = append(req.Entries, &plusonev1.BatchEntry{Key: fmt.Sprint(i), Delta: 1})
		}
		return req
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := r.client.BatchIncrement(t.Context(), batch(counter.MaxEntries-5)); err != nil {
			t.Error(err)
		}
	})
	<-arrived
	_, err := r.client.BatchIncrement(t.Context(), batch(6))
	shed := failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true}
	wantFailure(t, err, shed)
	_, err = r.client.BatchGetLikes(t.Context(), &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: make([]string, 6)})
	wantFailure(t, err, shed)
	_, err = r.reports.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: "k", PageSize: 6})
	wantFailure(t, err, shed)
	if _, err := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "k"}); err != nil {
		t.Errorf("a small request: %v", err)
	}
	if n := value(t, r.server.cache.metrics.shed.WithLabelValues("items")); n != 3 {
		t.Errorf("%v refusals counted", n)
	}
	close(gate)
	wg.Wait()
	// A batch that is too large is invalid, which no waiting cures.
	_, err = r.client.BatchIncrement(t.Context(), batch(counter.MaxEntries+1))
	wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: []string{"entries"}})
	if _, err := r.client.BatchIncrement(t.Context(), batch(counter.MaxEntries)); err != nil {
		t.Errorf("the largest batch alone: %v", err)
	}
}

// Every request of the API is admitted by what it costs, also those that a later version adds.
func TestItemsOfRequests(t *testing.T) {
	t.Parallel()
	files := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("plusone.v1", func(file protoreflect.FileDescriptor) bool {
		files++
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				input, err := protoregistry.GlobalTypes.FindMessageByName(methods.Get(j).Input().FullName())
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := itemsOf(input.New().Interface()); !ok {
					t.Errorf("%s is not admitted by what it costs", methods.Get(j).FullName())
				}
			}
		}
		return true
	})
	if files < 3 {
		t.Errorf("%d files of the API are looked at", files)
	}
	for _, tc := range []struct {
		req  any
		want int
	}{
		{&plusonev1.LikeRequest{}, 1},
		{&plusonev1.UnlikeRequest{}, 1},
		{&plusonev1.BatchGetLikesRequest{Keys: make([]string, 7)}, 7},
		{&plusonev1.BatchGetLikesRequest{Keys: make([]string, 5_000)}, 1_000},
		{&plusonev1.ImportRequest{Totals: make([]*plusonev1.ImportTotal, 7), Likes: make([]*plusonev1.ImportLike, 5)}, 12},
		{&plusonev1.ImportRequest{Totals: make([]*plusonev1.ImportTotal, 7_000), Likes: make([]*plusonev1.ImportLike, 5_000)}, 10_000},
		{&plusonev1.DeleteRequest{}, 1_000},
		{&plusonev1.ForgetActorRequest{}, 1_000},
		{&plusonev1.ListLikersRequest{}, 100},
		{&plusonev1.ListLikersRequest{PageSize: 7}, 7},
		{&plusonev1.ListLikedRequest{PageSize: 5_000}, 1_000},
		{&plusonev1.ListLikedRequest{PageSize: -5}, 0},
	} {
		if got, ok := itemsOf(tc.req); got != tc.want || !ok {
			t.Errorf("%T costs %d, %v, want %d", tc.req, got, ok, tc.want)
		}
	}
	if _, ok := itemsOf(&healthpb.HealthCheckRequest{}); ok {
		t.Error("a health check is not always let in")
	}
}

func TestPanicIsInternal(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{apply: func(context.Context, counter.Change) (counter.Receipt, error) {
		panic("hunter2")
	}}, Config{})
	_, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k"})
	wantFailure(t, err, failure{code: codes.Internal, reason: "INTERNAL"})
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the panic reached the caller: %v", err)
	}
	if log := r.log.String(); !strings.Contains(log, "hunter2") || !strings.Contains(log, "overload_test.go") {
		t.Errorf("the log lacks the panic or its stack:\n%s", log)
	}
}

// Lines about HTTP connections that are left out are counted as those of calls are.
func TestHTTPLogIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out safeBuffer
		m := newMetrics()
		s := newHTTPServer(prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&out, nil)), "test", m.logsSuppressed, nil)
		for range 3 * maxLinesPerSecond {
			s.ErrorLog.Print("broken")
		}
		if n := strings.Count(out.String(), "broken"); n != maxLinesPerSecond {
			t.Errorf("%d lines", n)
		}
		var value dto.Metric
		if err := m.logsSuppressed.Write(&value); err != nil || value.GetCounter().GetValue() != 2*maxLinesPerSecond {
			t.Errorf("%v lines were counted as left out, %v", value.GetCounter().GetValue(), err)
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	var l lineLimit
	now := storeTime
	for i := range 100 {
		if _, ok := l.take(now); ok != (i < maxLinesPerSecond) {
			t.Fatalf("line %d: %v", i, ok)
		}
	}
	if _, ok := l.take(now.Add(time.Second - 1)); ok {
		t.Error("a line too early")
	}
	if suppressed, ok := l.take(now.Add(time.Second)); !ok || suppressed != 91 {
		t.Errorf("got %d, %v", suppressed, ok)
	}
	if suppressed, ok := l.take(now.Add(time.Second)); !ok || suppressed != 0 {
		t.Errorf("got %d, %v", suppressed, ok)
	}
}
