package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Requests to the health service, which strangers may call, are small, and nothing else is waited for or read.
func TestHealthRequestsAreSmall(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	client := healthpb.NewHealthClient(r.conn)
	tooLarge := failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST"}
	for _, option := range []grpc.CallOption{grpc.EmptyCallOption{}, grpc.UseCompressor(gzip.Name)} {
		check := func(service string) error {
			_, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: service}, option)
			return err
		}
		watch := func(service string) error {
			stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: service}, option)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		for _, size := range []int{maxHealthBytes - 2, 100 << 10} { // a tag and a length of 1 or 2 bytes come first
			wantFailure(t, check(strings.Repeat("x", size)), tooLarge)
			wantFailure(t, watch(strings.Repeat("x", size)), tooLarge)
		}
		if f := status.Code(check(strings.Repeat("x", maxHealthBytes-3))); f != codes.NotFound {
			t.Errorf("the longest name: %v", f)
		}
		for _, err := range []error{check(""), watch(""), check("plusone.v1.CounterService"), watch(strings.Repeat("x", maxHealthBytes-3))} {
			if err != nil {
				t.Error(err)
			}
		}
	}
}
