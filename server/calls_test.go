package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// Calls are counted as go-grpc-middleware counts them.
func TestCallsAreCounted(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{apply: func(context.Context, counter.Change) (counter.Receipt, error) {
		return counter.Receipt{}, counter.ErrFull
	}}
	r := start(t, store, Config{})
	for range 2 {
		if _, err := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "k"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.client.Get(t.Context(), &plusonev1.GetRequest{}); err == nil {
		t.Fatal("no key is a key")
	}
	if _, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k"}); err == nil {
		t.Fatal("a full store took a change")
	}
	watching, cancel := context.WithCancel(t.Context())
	watch, err := healthpb.NewHealthClient(r.conn).Watch(watching, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	const (
		get     = `{grpc_method="Get",grpc_service="plusone.v1.CounterService",grpc_type="unary"}`
		like    = `{grpc_method="Like",grpc_service="plusone.v1.CounterService",grpc_type="unary"}`
		watches = `{grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"}`
	)
	wantMetrics(t, r, []string{
		"started_total" + get + " 3", "msg_received_total" + get + " 3", "msg_sent_total" + get + " 2",
		`handled_total{grpc_code="OK",` + get[1:] + " 2",
		`handled_total{grpc_code="InvalidArgument",` + get[1:] + " 1",
		`handled_total{grpc_code="ResourceExhausted",` + strings.Replace(get[1:], "Get", "Increment", 1) + " 1",
		"started_total" + like + " 0", "msg_received_total" + like + " 0", "msg_sent_total" + like + " 0",
		"started_total" + watches + " 1", "msg_received_total" + watches + " 1", "msg_sent_total" + watches + " 1",
		`handled_total{grpc_code="Canceled",` + watches[1:] + " 1",
		"handling_seconds_count" + get + " 3", "handling_seconds_count" + watches + " 1",
		`handling_seconds_bucket{` + strings.TrimSuffix(get[1:], "}") + `,le="+Inf"} 3`,
	})
}

// wantMetrics waits until the server shows the lines, since a call is counted when it has been answered.
func wantMetrics(t *testing.T, r *running, lines []string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		_, body := fetch(t, r.http+"/metrics")
		var missing []string
		for _, line := range lines {
			if !strings.Contains(body, "\nplusone_grpc_server_"+line+"\n") {
				missing = append(missing, line)
			}
		}
		if len(missing) == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("metrics lack\n%s\n%s", strings.Join(missing, "\n"), body)
		default:
		}
	}
}

func TestLatencyBuckets(t *testing.T) {
	t.Parallel()
	var m methodCalls
	for i, bound := range latencyNanos {
		m.end(nil, time.Duration(bound))
		if n := m.took[i].Load(); n != 1 {
			t.Errorf("%d calls in the bucket up to %v", n, time.Duration(bound))
		}
	}
	m.end(nil, time.Duration(latencyNanos[numLatencies-1])+1)
	if n := m.took[numLatencies].Load(); n != 1 {
		t.Errorf("%d calls above all buckets", n)
	}
	if got := time.Duration(latencyNanos[0]); got != 100*time.Microsecond {
		t.Errorf("the first bucket ends at %v", got)
	}
}

func TestCodeOfAnError(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]codes.Code{
		&rpcError{status: statusFull}:         codes.ResourceExhausted,
		context.Canceled:                      codes.Canceled,
		context.DeadlineExceeded:              codes.DeadlineExceeded,
		errDriver:                             codes.Unknown,
		status.Error(codes.Code(4711), "new"): codes.Unknown,
	} {
		if got := sentCode(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
