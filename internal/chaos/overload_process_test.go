package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// mebibyte is of memory.
const mebibyte = 1 << 20

// serve builds and starts a server.
func serve(t testing.TB, variant plusonetest.Variant, args ...string) *plusonetest.Instance {
	t.Helper()
	binary, err := plusonetest.Build(variant)
	if err != nil {
		t.Fatal(err)
	}
	return plusonetest.Start(t, binary, args...)
}

// shardedFlags are those of sharded mode, with windows that are soon drained.
func shardedFlags(redis, postgres string) []string {
	return []string{
		"--redis-url=" + redis, "--postgres-url=" + postgres, "--postgres-max-conns=6",
		"--shards=4", "--window=200ms", "--flush-interval=50ms",
	}
}

// services are connections of their own. Their calls are not repeated.
func services(t testing.TB, addr string, n int) []plusonev1.CounterServiceClient {
	t.Helper()
	all := make([]plusonev1.CounterServiceClient, n)
	for i := range all {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		all[i] = plusonev1.NewCounterServiceClient(conn)
		if _, err := all[i].Get(t.Context(), &plusonev1.GetRequest{Key: "warm"}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// freshCount reads a count that the store has now. It fails the test.
func freshCount(t testing.TB, service plusonev1.CounterServiceClient, key string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), plusonetest.Patience)
	defer cancel()
	got, err := service.Get(ctx, &plusonev1.GetRequest{Key: key, MaxAge: durationpb.New(0)})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetCount().GetStale() {
		t.Fatal("a fresh read is stale")
	}
	return got.GetCount().GetCount()
}

// ledgerTotal reads a counter from Postgres.
func ledgerTotal(t testing.TB, url, key string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), plusonetest.Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing was written
	var total int64
	err = conn.QueryRow(ctx, `SELECT count FROM counter_totals WHERE key = $1`, key).Scan(&total)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return total
}

// waitUntil waits for a condition on other processes. It fails the test.
func waitUntil(t testing.TB, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(plusonetest.Patience, plusonetest.PollInterval, done) {
		t.Fatalf("never: %s", what)
	}
}

// forgetPeak has the system measure a process's peak of memory anew.
func forgetPeak(t testing.TB, s *plusonetest.Instance) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.Process.PID()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// peak is the most memory that a process had resident since forgetPeak, in bytes.
func peak(t testing.TB, s *plusonetest.Instance) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Process.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(text, []byte("VmHWM:"))
	value, _, found := bytes.Cut(rest, []byte(" kB"))
	kibibytes, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
	if err != nil || !found {
		t.Fatalf("no VmHWM in %s", text)
	}
	return kibibytes << 10
}

func wantPeak(t testing.TB, s *plusonetest.Instance, bound int64) {
	t.Helper()
	got := peak(t, s)
	t.Logf("the peak of memory was %d MiB", got/mebibyte)
	if got > bound {
		t.Errorf("that is more than %d MiB", bound/mebibyte)
	}
}
