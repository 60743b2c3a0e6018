package auth

import (
	"context"
	"testing"
)

// What a call pays for its JWT: nothing but the look-up, once it has been verified.
func BenchmarkJWT(b *testing.B) {
	s := rsaSigner(b)
	a := openJWT(b, jwks(b, s), nil)
	header := []string{"Bearer " + s.sign(b, goodClaims(nil))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(context.Background(), header, nil); err != nil {
			b.Fatal(err)
		}
	}
}
