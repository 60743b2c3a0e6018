package connlimit_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/connlimit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Within the limit connections are served, beyond it they are closed, and one that ends makes room.
func TestLimit(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	registry := prometheus.NewRegistry()
	listener := connlimit.Listen(inner, "grpc", 2, connlimit.NewMetrics(registry))
	defer listener.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		return conn
	}
	first, _ := dial(), <-accepted
	_, second := dial(), <-accepted
	for range 3 {
		if _, err := dial().Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a connection beyond the limit: %v", err)
		}
	}
	wantMetrics(t, registry, 2, 3)
	must(t, second.Close())
	_ = second.Close() // it counts once
	third, inside := dial(), <-accepted
	_, err = inside.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(third, make([]byte, 1))
	must(t, err)
	if _, err := dial().Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a connection beyond the limit: %v", err)
	}
	wantMetrics(t, registry, 2, 4)
	if _, err := first.Write([]byte("x")); err != nil {
		t.Errorf("a connection within the limit: %v", err)
	}
	must(t, listener.Close())
	if _, open := <-accepted; open {
		t.Error("a closed listener accepts")
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error) //nolint:errorlint // as it comes from the connection
	return ok && timeout.Timeout()
}

func wantMetrics(t *testing.T, registry *prometheus.Registry, open, refused float64) {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
	}
	if got["plusone_connections_open"] != open || got["plusone_connections_refused_total"] != refused {
		t.Errorf("metrics are %v, want %v open and %v refused", got, open, refused)
	}
}
