package bench_test

import (
	"path/filepath"
	"testing"

	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// TestDirect measures direct mode beside one UPDATE per request, on the same server.
func TestDirect(t *testing.T) {
	postgres := pgtest.Start(t)
	i := plusonetest.Start(t, build(t), "--postgres-url="+postgres.URL)
	update := yardstick(t, update, postgres.URL)
	comparison{
		work: "direct mode, Increment with request_id, one row", against: "one UPDATE per request", target: "throughput ≥ 10",
		subject: side{target{name: "direct", addr: i.GRPCAddr, pid: i.Process.PID()}, increment(1, true), 1, inFlight},
		yard:    side{update, increment(1, false), 1, inFlight},
	}.measure(t)
}

// TestEmbedded measures embedded mode.
func TestEmbedded(t *testing.T) {
	i := plusonetest.Start(t, build(t), "--data="+filepath.Join(testproc.TempDir(t), "plusone.db"))
	comparison{
		work: "embedded mode, Increment with request_id, 1,000 keys", against: "echo", target: "throughput ≥ 0.6",
		subject: side{target{name: "embedded", addr: i.GRPCAddr, pid: i.Process.PID()}, increment(1000, true), 1, inFlight},
		yard:    side{yardstick(t, echo, ""), increment(1000, true), 1, inFlight},
	}.measure(t)
}
