package server

import (
	"context"
	"testing"

	"google.golang.org/grpc/metadata"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// What letting a call in costs, beside the authenticator.
func BenchmarkAccess(b *testing.B) {
	r := start(b, &scriptedStore{}, Config{Authenticator: people})
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(
		":authority", "plusone", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "Bearer views"))
	req := &plusonev1.IncrementRequest{Key: "views/a"}
	handler := func(ctx context.Context, _ any) (any, error) { return req, ctx.Err() }
	i := newInterceptor(r.server.cache.metrics, &access{people, r.server.cache.metrics}, r.server.admission, nil, r.server.log, nil)
	for name, access := range map[string]*access{"everyone": nil, "known": i.access} {
		b.Run(name, func(b *testing.B) {
			i.access = access
			b.ReportAllocs()
			for b.Loop() {
				if _, err := i.call(ctx, plusonev1.CounterService_Increment_FullMethodName, req, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
