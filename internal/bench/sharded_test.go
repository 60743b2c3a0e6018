package bench_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
)

const inFlight = 200

// sharded is plusone in sharded mode, with its yardsticks on Redis servers of their own.
type sharded struct {
	plusone                                      target
	echo, quiet, held, bare, asking, naive, once target
}

func startSharded(t *testing.T) sharded {
	t.Helper()
	redis := redistest.Start(t)
	binary := build(t)
	i := plusonetest.Start(t, binary, "--redis-url="+redis.URL(), "--postgres-url="+pgtest.NewDatabase(t))
	beside := func(kind, ledger string) target {
		own := redistest.Start(t)
		y := yardstick(t, kind, strings.TrimSpace(own.URL()+" "+ledger))
		y.store = own.PID()
		return y
	}
	return sharded{
		plusone: target{name: "plusone", addr: i.GRPCAddr, pid: i.Process.PID(), store: redis.PID()},
		echo:    yardstick(t, echo, ""), quiet: yardstick(t, quiet, ""), held: yardstick(t, held, ""), bare: beside(bare, pgtest.NewDatabase(t)),
		asking: beside(asking, pgtest.NewDatabase(t)),
		naive:  beside(naive, ""), once: beside(once, ""),
	}
}

func build(t *testing.T) string {
	t.Helper()
	binary, err := plusonetest.Build(plusonetest.Variant{})
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

func TestWrites(t *testing.T) {
	s := startSharded(t)
	thousand := side{s.plusone, increment(1000, true), 1, inFlight}
	comparison{
		work: "Increment with request_id, 1,000 keys", against: "echo", target: "throughput ≥ 0.85, server CPU ≤ 1.35",
		subject: thousand, yard: side{s.echo, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "echo over connections like plusone's", against: "echo", target: "(what they bring)",
		subject: side{s.quiet, increment(1000, true), 1, inFlight}, yard: side{s.echo, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "echo whose handlers wait for each other, 2 ms at most", against: "echo", target: "(what combining can reach)",
		subject: side{s.held, increment(1000, true), 1, inFlight}, yard: side{s.echo, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "combining and nothing else, with request_id", against: "echo", target: "(what combining in Redis can reach)",
		subject: side{s.bare, increment(1000, true), 1, inFlight}, yard: side{s.echo, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "Increment with request_id, 1,000 keys", against: "combining and nothing else", target: "(what the promises cost)", perStore: true,
		subject: thousand, yard: side{s.bare, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "Increment with request_id, 1,000 keys", against: "a script with SET NX and INCRBY per request", target: "Redis CPU ≤ 0.6", perStore: true,
		subject: thousand, yard: side{s.once, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "Increment without request_id, 1,000 keys", against: "one INCRBY per request", target: "Redis CPU ≤ 0.5", perStore: true,
		subject: side{s.plusone, increment(1000, false), 1, inFlight}, yard: side{s.naive, increment(1000, false), 1, inFlight},
	}.measure(t)
	comparison{
		work: "combining and nothing else, without request_id", against: "one INCRBY per request", target: "(what a HINCRBY in a script for each key can reach)", perStore: true,
		subject: side{s.bare, increment(1000, false), 1, inFlight}, yard: side{s.naive, increment(1000, false), 1, inFlight},
	}.measure(t)
	comparison{
		work: "Increment with request_id, one key", against: "1,000 keys", target: "throughput ≥ 1.0", perStore: true,
		subject: side{s.plusone, increment(1, true), 1, inFlight}, yard: thousand,
	}.measure(t)
	comparison{
		work: "Like by distinct actors, one key that has just become hot", against: "Increment with request_id", target: "(throughput ≥ 0.8 after a minute)", perStore: true,
		subject: side{s.plusone, like(), 1, inFlight}, yard: thousand,
	}.measure(t)
	comparison{
		work: "Like by distinct actors, one key that has been hot for a minute", against: "Increment with request_id", target: "throughput ≥ 0.8", perStore: true,
		subject: side{s.plusone, like(), 1, inFlight}, yard: thousand, lead: time.Minute,
	}.measure(t)
	unspread := startWith(t, "namespaces: {likes: {shards: 1}}")
	comparison{
		work: "Like by distinct actors, one key that its policy does not spread", against: "Increment with request_id", target: "throughput ≥ 0.8", perStore: true,
		subject: side{unspread, like(), 1, inFlight}, yard: side{unspread, increment(1000, true), 1, inFlight},
	}.measure(t)
	comparison{
		work: "combining and nothing else, Like by distinct actors", against: "plusone's Increment with request_id", target: "(what likes can reach)", perStore: true,
		subject: side{s.bare, like(), 1, inFlight}, yard: thousand,
	}.measure(t)
	comparison{
		work: "combining and nothing else, Like by distinct actors, with a question to the ledger", against: "plusone's Increment with request_id",
		target: "(what likes can reach whose memory in Redis is bounded)", perStore: true,
		subject: side{s.asking, like(), 1, inFlight}, yard: thousand,
	}.measure(t)
	comparison{
		work: "BatchIncrement with request_id, 1,000 entries", against: "echo, by entry", target: "≥ 2,000,000 entries/s",
		subject: side{s.plusone, batchIncrement(1000), 1000, 32}, yard: side{s.echo, increment(1000, true), 1, inFlight},
	}.measure(t)
}

// TestReads has servers of its own, which do not drain yet what was written before.
func TestReads(t *testing.T) {
	s := startSharded(t)
	comparison{
		work: "Get, up to 5 s old", against: "echo", target: "throughput ≥ 0.95",
		subject: side{s.plusone, get(1000, false), 1, inFlight}, yard: side{s.echo, get(1000, false), 1, inFlight},
	}.measure(t)
	comparison{
		work: "BatchGet of 100 keys, up to 5 s old", against: "echo", target: "throughput ≥ 0.8",
		subject: side{s.plusone, batchGet(1000, 100), 1, inFlight}, yard: side{s.echo, batchGet(1000, 100), 1, inFlight},
	}.measure(t)
	comparison{
		work: "Get with max_age 0, keys that are not spread", against: "8 GETs per request", target: "throughput ≥ 1.25", perStore: true,
		subject: side{s.plusone, getCold(1000), 1, inFlight}, yard: side{s.naive, getCold(1000), 1, inFlight},
	}.measure(t)
}

// like has another actor in each call.
func like() call {
	var actors atomic.Int64
	first := rand.Int64()
	return func(ctx context.Context, c plusonev1.CounterServiceClient, _ *rand.Rand) error {
		_, err := c.Like(ctx, &plusonev1.LikeRequest{Key: "likes/post:1", Actor: fmt.Sprintf("user:%x:%d", first, actors.Add(1)), RequestId: storetest.NewID(time.Now())})
		return err
	}
}

func batchIncrement(entries int) call {
	batch := make([]*plusonev1.BatchEntry, entries)
	for i, name := range keyNames(entries) {
		batch[i] = &plusonev1.BatchEntry{Key: name, Delta: 1}
	}
	return func(ctx context.Context, c plusonev1.CounterServiceClient, _ *rand.Rand) error {
		_, err := c.BatchIncrement(ctx, &plusonev1.BatchIncrementRequest{Entries: batch, RequestId: storetest.NewID(time.Now())})
		return err
	}
}

func get(keys int, fresh bool) call { return getOf(keyNames(keys), fresh) }

// getCold reads keys that the increments have not spread.
func getCold(keys int) call {
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("cold/post:%07d", i)
	}
	return getOf(names, true)
}

func getOf(names []string, fresh bool) call {
	return func(ctx context.Context, c plusonev1.CounterServiceClient, r *rand.Rand) error {
		req := &plusonev1.GetRequest{Key: names[r.IntN(len(names))]}
		if fresh {
			req.MaxAge = &durationpb.Duration{}
		}
		_, err := c.Get(ctx, req)
		return err
	}
}

func batchGet(keys, each int) call {
	names := keyNames(keys)
	return func(ctx context.Context, c plusonev1.CounterServiceClient, r *rand.Rand) error {
		first := r.IntN(keys - each + 1)
		_, err := c.BatchGet(ctx, &plusonev1.BatchGetRequest{Keys: names[first : first+each]})
		return err
	}
}
