package main_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// A server that is killed again and again loses nothing that it acknowledged, and counts no retry twice.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, m := range modes[:3] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, total := m.deploy(t)
			s := startAt(t, args...)
			c := dial(t, s)
			l := startLoad(t, c, 8, "a", "b", "c")
			for range 4 {
				l.progress(150)
				s.Restart()
			}
			l.progress(150)
			l.end()
			l.check(func(key string) int64 { return count(t, c, key) })
			for i, key := range l.keys {
				want := l.acked[i].Load()
				eventually(t, "counter_totals agrees", func() bool { return total(t, key) >= want })
				if got := total(t, key); got != want {
					t.Errorf("counter_totals has %d of %s, want %d", got, key, want)
				}
			}
		})
	}
}

// Sharded mode counts on while Postgres is down, and catches up by itself.
func TestPostgresOutage(t *testing.T) {
	t.Parallel()
	postgres := pgtest.Start(t)
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	s := start(t, shardedArgs(redis.URL(), postgres.URL)...)
	c := dial(t, s)
	const key = "views/outage"
	_, err := c.Increment(context.Background(), key, 1)
	must(t, err)
	if got := count(t, c, key); got != 1 { // now Redis has its base
		t.Fatalf("count is %d", got)
	}
	postgres.Kill()
	l := startLoad(t, c, 4, key)
	l.progress(500)
	l.end()
	want := l.total.Load() + 1
	if got := count(t, c, key); got != want {
		t.Errorf("count is %d without Postgres, want %d", got, want)
	}
	if code, _ := s.Page("/healthz"); code != 200 {
		t.Errorf("/healthz answers %d without Postgres", code)
	}
	if _, err := c.Get(within(t, time.Second), "views/unknown", client.Fresh()); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("read of a key that only Postgres knows: %v", err)
	}
	postgres.Restart()
	eventually(t, "counter_totals catches up", func() bool { return postgresTotal(t, postgres.URL, key) >= want })
	if got := postgresTotal(t, postgres.URL, key); got != want {
		t.Errorf("counter_totals has %d, want %d", got, want)
	}
	if got := count(t, c, key); got != want {
		t.Errorf("count is %d after all, want %d", got, want)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// Without Redis changes fail, in time and in a way that says to retry; reads of known keys are stale. Nothing
// needs a restart afterwards.
func TestRedisOutage(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	s := start(t, shardedArgs(redis.URL(), pgtest.NewDatabase(t))...)
	c := dial(t, s)
	const key = "views/outage"
	_, err := c.Increment(context.Background(), key, 5)
	must(t, err)
	if got := count(t, c, key); got != 5 {
		t.Fatalf("count is %d", got)
	}
	redis.Kill()

	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	ctx := within(t, 4*time.Second)
	_, err = plusonev1.NewCounterServiceClient(conn).Increment(ctx, &plusonev1.IncrementRequest{Key: key, RequestId: "lost-1"})
	if status.Code(err) != codes.Unavailable || ctx.Err() != nil || !hasRetryInfo(err) {
		t.Errorf("increment without Redis: %v (details %v)", err, status.Convert(err).Details())
	}
	got, err := c.Get(within(t, 4*time.Second), key, client.Fresh())
	if err != nil || !got.Stale || got.Count != 5 {
		t.Errorf("read of a known key without Redis: %+v, %v", got, err)
	}
	if _, err := c.Get(within(t, time.Second), "views/unknown"); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("read of an unknown key without Redis: %v", err)
	}
	if code, _ := s.Page("/healthz"); code != 200 {
		t.Errorf("/healthz answers %d without Redis", code)
	}

	redis.Restart()
	_, err = c.Increment(context.Background(), key, 1, client.WithRequestID("lost-1"))
	must(t, err)
	if got := count(t, c, key); got != 6 {
		t.Errorf("count is %d, want 6", got)
	}
}

func hasRetryInfo(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if _, ok := detail.(*errdetails.RetryInfo); ok {
			return true
		}
	}
	return false
}

// After a rollback of Redis nothing drained is lost or drained twice, reads agree with Postgres again by
// themselves, it is loud, and ids of which nobody knows any more whether they were counted are refused.
func TestRollback(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	url := pgtest.NewDatabase(t)
	s := start(t, shardedArgs(redis.URL(), url)...)
	c := dial(t, s)
	ctx := context.Background()
	const key = "views/rollback"
	drained := func(want int64) func() bool { return func() bool { return postgresTotal(t, url, key) == want } }
	_, err := c.Increment(ctx, key, 5)
	must(t, err)
	eventually(t, "the first change is drained", drained(5))
	past := redis.Snapshot()
	id := uuid.Must(uuid.NewV7()).String()
	_, err = c.Increment(ctx, key, 3, client.WithRequestID(id))
	must(t, err)
	eventually(t, "the second change is drained", drained(8))

	redis.Restore(past)
	eventually(t, "the rollback is noticed", func() bool {
		_, metrics := s.Page("/metrics")
		return !strings.Contains(metrics, "\nplusone_flush_rollbacks_total 0\n") && strings.Contains(string(s.Output()), "redis went back in time")
	})
	eventually(t, "a fresh read agrees with Postgres", func() bool { return count(t, c, key) == 8 })
	for _, old := range []string{id, "not-a-uuid"} {
		if _, err := c.Increment(ctx, key, 3, client.WithRequestID(old)); !errors.Is(err, client.ErrRequestIDExpired) {
			t.Errorf("retry with id %s: %v", old, err)
		}
	}
	_, err = c.Increment(ctx, key, 1)
	must(t, err)
	eventually(t, "the next change is drained", drained(9))
	if got := count(t, c, key); got != 9 {
		t.Errorf("count is %d, want 9", got)
	}
}

// Servers that start at the same time on an empty database take turns to migrate it.
func TestStartTogether(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	url := pgtest.NewDatabase(t)
	servers := make([]*plusonetest.Instance, 5)
	for i := range servers {
		servers[i] = launch(t, append([]string{"serve", "--grpc-addr=127.0.0.1:0"}, shardedArgs(redis.URL(), url)...)...)
	}
	for _, s := range servers {
		s.WaitReady()
	}
	for _, s := range servers {
		_, err := dial(t, s).Increment(context.Background(), "a", 1)
		must(t, err)
	}
	if got := count(t, dial(t, servers[0]), "a"); got != 5 {
		t.Errorf("count is %d, want 5", got)
	}
}

// A rolling restart goes unnoticed by callers, and loses nothing.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	url := pgtest.NewDatabase(t)
	args := shardedArgs(redis.URL(), url)
	servers := []*plusonetest.Instance{startAt(t, args...), startAt(t, args...)}
	c := dial(t, servers...)
	l := startLoad(t, c, 8, "a", "b")
	for range 2 {
		for _, s := range servers {
			l.progress(200)
			s.Terminate()
			l.progress(50)
			s.Restart()
		}
	}
	l.progress(200)
	l.check(func(key string) int64 { return count(t, c, key) })
}

// Servers may leave the draining to a worker, which may be killed and stopped like any server.
func TestFlushAlone(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	url := pgtest.NewDatabase(t)
	args := shardedArgs(redis.URL(), url)
	s := start(t, append(args[:len(args)-1:len(args)-1], "--flush=false")...)
	worker := launch(t, append([]string{"flush"}, args...)...)
	worker.WaitReady()
	if code, body := worker.Page("/healthz"); code != 200 || body != "ok flush worker\n" {
		t.Errorf("/healthz of the worker answers %d %q", code, body)
	}
	l := startLoad(t, dial(t, s), 4, "a")
	for range 3 {
		l.progress(200)
		before := postgresTotal(t, url, "a")
		eventually(t, "the worker drains", func() bool { return postgresTotal(t, url, "a") > before })
		worker.Restart()
	}
	l.end()
	want := l.total.Load()
	eventually(t, "all is drained", func() bool { return postgresTotal(t, url, "a") >= want })
	worker.Terminate()
	if got := postgresTotal(t, url, "a"); got != want {
		t.Errorf("counter_totals has %d, want %d", got, want)
	}
	if got := count(t, dial(t, s), "a"); got != want {
		t.Errorf("count is %d, want %d", got, want)
	}
}

// beginCall begins a call whose request never comes.
func beginCall(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	_, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, plusonev1.CounterService_Increment_FullMethodName)
	must(t, err)
	// The answer to the next call of the connection shows that the server knows of this one.
	_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	must(t, err)
}

// A stop that waits for a caller who never ends is cut short by a second signal.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	s := start(t, "--data="+testproc.TempDir(t)+"/plusone.db", "--shutdown-timeout=1h")
	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	beginCall(t, conn)
	stream, err := healthpb.NewHealthClient(conn).Watch(context.Background(), &healthpb.HealthCheckRequest{})
	must(t, err)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING,
	} {
		got, err := stream.Recv()
		must(t, err)
		if got.GetStatus() != want {
			t.Fatalf("health is %v, want %v", got.GetStatus(), want)
		}
		must(t, s.Process.Signal(syscall.SIGTERM))
	}
	eventually(t, "the process ends", func() bool {
		// The first signal may still be on its way to the program.
		must(t, s.Process.Signal(syscall.SIGTERM))
		return s.Process.Exited()
	})
	if s.Logged("stopping") == nil || s.Logged("stopped") != nil {
		t.Error("the process did not begin to stop in order, or ended that")
	}
}

// A stop is over after the shutdown timeout, whoever still calls.
func TestShutdownTimeout(t *testing.T) {
	t.Parallel()
	s := start(t, "--data="+testproc.TempDir(t)+"/plusone.db", "--shutdown-timeout=1s")
	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	beginCall(t, conn)
	must(t, s.Process.Signal(syscall.SIGTERM))
	if !s.Process.Wait(patience) {
		t.Fatal("the process did not end")
	}
	if s.Logged("failed") == nil {
		t.Error("the log does not say that the stop was cut short")
	}
}
