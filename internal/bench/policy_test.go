package bench_test

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/metadata"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
)

// TestPolicies measures what JWTs, policies and limits cost, beside a server that lets everyone do everything.
func TestPolicies(t *testing.T) {
	plain := startWith(t, "")
	key := filepath.Join(t.TempDir(), "hs256")
	if err := os.WriteFile(key, []byte(rand.Text()+rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	policies := startWith(t, "namespaces: {views: {max_delta: 10, anonymous: false, dedupe_window: 1m}}")
	limits := startWith(t, "namespaces: {views: {max_delta: 10, anonymous: false, limits: {actor: 600/1m, caller: 1000000/1s}}}",
		"--jwt-hs256-file="+key, "--jwt-issuer=bench", "--jwt-audience=plusone")
	load := func(s target, token string) side { return side{s, incrementBy(1000, 10_000, token), 1, inFlight} }
	comparison{
		work: "Increment with request_id and actor, a policy", against: "the same without a policy", target: "server CPU ≤ 1.05", perStore: true,
		subject: load(policies, ""), yard: load(plain, ""),
	}.measure(t)
	comparison{
		work: "Increment with request_id and actor, a JWT, and a policy with limits of the actor and the caller", against: "the same without",
		target: "throughput ≥ 0.7", perStore: true,
		subject: load(limits, signed(t, key)), yard: load(plain, ""),
	}.measure(t)
}

// signed returns a JWT of a service.
func signed(t *testing.T, keyFile string) string {
	t.Helper()
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": "bench", "aud": "plusone", "sub": "bench", "exp": time.Now().Add(time.Hour).Unix(),
		"scope": "write service", "namespaces": []string{"*"},
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// startWith starts plusone in sharded mode with a policy file of this text, if there is one.
func startWith(t *testing.T, policies string, flags ...string) target {
	t.Helper()
	redis := redistest.Start(t)
	args := append([]string{"--redis-url=" + redis.URL(), "--postgres-url=" + pgtest.NewDatabase(t)}, flags...)
	if policies != "" {
		file := filepath.Join(t.TempDir(), "policies.yaml")
		if err := os.WriteFile(file, []byte(policies), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--policy-file="+file)
	}
	i := plusonetest.Start(t, build(t), args...)
	return target{name: "plusone", addr: i.GRPCAddr, pid: i.Process.PID(), store: redis.PID()}
}

// incrementBy changes one of so many keys, for one of so many actors, with a token if there is one.
func incrementBy(keys, actors int, token string) call {
	var credentials metadata.MD
	if token != "" {
		credentials = metadata.Pairs("authorization", "Bearer "+token)
	}
	names := keyNames(keys)
	who := make([]string, actors)
	for i := range who {
		who[i] = fmt.Sprintf("user:%07d", i)
	}
	return func(ctx context.Context, c plusonev1.CounterServiceClient, r *mathrand.Rand) error {
		if credentials != nil {
			ctx = metadata.NewOutgoingContext(ctx, credentials)
		}
		_, err := c.Increment(ctx, &plusonev1.IncrementRequest{
			Key: names[r.IntN(keys)], Actor: who[r.IntN(actors)], RequestId: storetest.NewID(time.Now()),
		})
		return err
	}
}
