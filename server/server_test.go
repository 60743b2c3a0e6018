package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// awaitServing returns when a call gets through: the server has started.
func awaitServing(t *testing.T, r *running) {
	t.Helper()
	if _, err := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "k"}); err != nil {
		t.Fatal(err)
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	var unhealthy error
	r := start(t, &scriptedStore{}, Config{Healthy: func(context.Context) error { return unhealthy }})
	awaitServing(t, r)

	if code, body := fetch(t, r.http+"/"); code != 200 || !strings.Contains(body, "/metrics") || !strings.Contains(body, "/healthz") {
		t.Errorf("page: %d %s", code, body)
	}
	if code, _ := fetch(t, r.http+"/nothing"); code != 404 {
		t.Errorf("a page that is not there: %d", code)
	}
	if code, body := fetch(t, r.http+"/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthy: %d %q", code, body)
	}
	unhealthy = errDriver
	if code, body := fetch(t, r.http+"/healthz"); code != 503 || body != "unavailable\n" {
		t.Errorf("unhealthy: %d %q", code, body)
	}
	unhealthy = nil
	r.server.SetNotServing()
	if code, _ := fetch(t, r.http+"/healthz"); code != 503 {
		t.Errorf("not serving: %d", code)
	}

	awaitServing(t, r)
	_, body := fetch(t, r.http+"/metrics")
	for _, want := range []string{
		`plusone_grpc_server_handled_total{grpc_code="OK",grpc_method="Get",grpc_service="plusone.v1.CounterService",grpc_type="unary"} 2`,
		`plusone_grpc_server_handled_total{grpc_code="OK",grpc_method="Like",grpc_service="plusone.v1.CounterService",grpc_type="unary"} 0`,
		`plusone_grpc_server_handled_total{grpc_code="OK",grpc_method="ListLikers",grpc_service="plusone.v1.ReportService",grpc_type="unary"} 0`,
		`plusone_grpc_server_handling_seconds_bucket{`,
		"plusone_cache_hits_total 1\n", "plusone_cache_misses_total 1\n", "plusone_cache_entries 1\n",
		"plusone_cache_stale_total 0\n", "plusone_cache_refreshes_total 0\n", "plusone_cache_evictions_total 0\n",
		"plusone_server_in_flight_requests 0\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

func TestHealthFollowsServing(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	awaitServing(t, r)
	check := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, service := range []string{"", "plusone.v1.CounterService", "plusone.v1.ReportService"} {
			resp, err := healthpb.NewHealthClient(r.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || resp.Status != want {
				t.Errorf("%q: %v, %v", service, resp, err)
			}
		}
	}
	check(healthpb.HealthCheckResponse_SERVING)
	r.server.SetNotServing()
	check(healthpb.HealthCheckResponse_NOT_SERVING)
	awaitServing(t, r) // calls are still answered
	r.server.SetServing()
	check(healthpb.HealthCheckResponse_SERVING)
}

func TestReflection(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "plusone.v1.CounterService"},
	}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil || len(resp.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Errorf("got %v, %v", resp, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

func TestShutdownLetsCallsFinish(t *testing.T) {
	t.Parallel()
	store, arrived, gate := gatedStore()
	r := start(t, store, Config{RequestTimeout: time.Minute})
	called := make(chan error, 1)
	go func() {
		_, err := r.client.Increment(context.Background(), &plusonev1.IncrementRequest{Key: "k"})
		called <- err
	}()
	<-arrived
	watch, err := healthpb.NewHealthClient(r.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := watch.Recv(); err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("got %v, %v", resp, err)
	}
	stopped := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { stopped <- r.server.Shutdown(ctx) }()
	// Health tells first, while calls are still under way, and cannot be told otherwise any more.
	if resp, err := watch.Recv(); err != nil || resp.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("got %v, %v", resp, err)
	}
	r.server.SetServing()
	if code, _ := fetch(t, r.http+"/healthz"); code != 503 {
		t.Errorf("/healthz while stopping: %d", code)
	}
	select {
	case err := <-stopped:
		t.Fatalf("stopped with a call under way: %v", err)
	case err := <-called:
		t.Fatalf("the call was cut off: %v", err)
	default:
	}
	close(gate)
	if err := <-called; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-r.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// Clients may keep streams open for as long as they like, which must not hold up a stop.
func TestShutdownEndsStreams(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	watch, err := healthpb.NewHealthClient(r.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	reflection, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
	if err := reflection.Send(list); err != nil {
		t.Fatal(err)
	}
	if _, err := reflection.Recv(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	for err == nil { // the last news may still be there
		_, err = watch.Recv()
	}
	wantFailure(t, err, failure{code: codes.Unavailable, reason: "STOPPING", retry: true})
	_, err = reflection.Recv()
	wantFailure(t, err, failure{code: codes.Unavailable, reason: "STOPPING", retry: true})
}

func TestShutdownIsBounded(t *testing.T) {
	t.Parallel()
	store, arrived, _ := gatedStore()
	r := start(t, store, Config{RequestTimeout: time.Minute})
	called := make(chan error, 1)
	go func() {
		_, err := r.client.Increment(context.Background(), &plusonev1.IncrementRequest{Key: "k"})
		called <- err
	}()
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.server.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if code := failureOf(t, <-called).code; code != codes.Unavailable && code != codes.Canceled {
		t.Errorf("the call: %v", code)
	}
	if err := <-r.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// Start and stop in any order, repeatedly and at once.
func TestStartStop(t *testing.T) {
	t.Parallel()
	for range 20 {
		s, err := New(&scriptedStore{}, &scriptedReports{}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		grpcListener, httpListener := listen(t), listen(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Serve(grpcListener, httpListener); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
		for range 3 {
			wg.Go(func() {
				s.SetServing()
				if err := s.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
		}
		wg.Wait()
		if err := s.Serve(grpcListener, httpListener); err == nil {
			t.Error("a second Serve succeeded")
		}
	}
	s, err := New(&scriptedStore{}, &scriptedReports{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown without Serve: %v", err)
	}
}

func TestServeFailsWithItsListeners(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]int{"gRPC": 0, "HTTP": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := New(&scriptedStore{}, &scriptedReports{}, Config{})
			if err != nil {
				t.Fatal(err)
			}
			listeners := []net.Listener{listen(t), listen(t)}
			if err := listeners[broken].Close(); err != nil {
				t.Fatal(err)
			}
			err = s.Serve(listeners[0], listeners[1])
			if err == nil || !strings.Contains(err.Error(), "serve "+name) {
				t.Errorf("Serve: %v", err)
			}
			if s.serving.Load() {
				t.Error("still reported as serving")
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	first, err := New(&scriptedStore{}, &scriptedReports{}, Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Shutdown(t.Context()) }()
	for name, config := range map[string]Config{
		"MaxDelta":            {MaxDelta: -1},
		"RequestTimeout":      {RequestTimeout: time.Microsecond},
		"CacheBytes":          {CacheBytes: -1},
		"MaxInFlight":         {MaxInFlight: -1},
		"MaxInFlightItems":    {MaxInFlightItems: 9_999},
		"registry used twice": {Registry: registry},
	} {
		if _, err := New(&scriptedStore{}, &scriptedReports{}, config); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
