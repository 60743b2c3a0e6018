package bench_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
)

// TestPolicies measures what policies and limits cost, beside a server that has none.
func TestPolicies(t *testing.T) {
	plain := startWith(t, "")
	policies := startWith(t, "namespaces: {views: {max_delta: 10, anonymous: false, dedupe_window: 1m}}")
	limits := startWith(t, "namespaces: {views: {max_delta: 10, anonymous: false, limits: {actor: 600/1m, caller: 1000000/1s}}}")
	load := func(s target) side { return side{s, incrementBy(1000, 10_000), 1, inFlight} }
	comparison{
		work: "Increment with request_id and actor, a policy", against: "the same without a policy", target: "server CPU ≤ 1.05", perStore: true,
		subject: load(policies), yard: load(plain),
	}.measure(t)
	comparison{
		work: "Increment with request_id and actor, a policy with limits of the actor and the caller", against: "the same without a policy",
		target: "throughput ≥ 0.7", perStore: true,
		subject: load(limits), yard: load(plain),
	}.measure(t)
}

// startWith starts plusone in sharded mode with a policy file of this text, if there is one.
func startWith(t *testing.T, policies string) target {
	t.Helper()
	redis := redistest.Start(t)
	args := []string{"--redis-url=" + redis.URL(), "--postgres-url=" + pgtest.NewDatabase(t)}
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

// incrementBy changes one of so many keys, for one of so many actors.
func incrementBy(keys, actors int) call {
	names := keyNames(keys)
	who := make([]string, actors)
	for i := range who {
		who[i] = fmt.Sprintf("user:%07d", i)
	}
	return func(ctx context.Context, c plusonev1.CounterServiceClient, r *rand.Rand) error {
		_, err := c.Increment(ctx, &plusonev1.IncrementRequest{
			Key: names[r.IntN(keys)], Actor: who[r.IntN(actors)], RequestId: storetest.NewID(time.Now()),
		})
		return err
	}
}
