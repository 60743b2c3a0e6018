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
	direct := target{name: "direct", addr: i.GRPCAddr, pid: i.Process.PID()}
	for _, withID := range []bool{true, false} {
		comparison{
			work: "direct mode, Increment " + idText(withID) + ", one row", against: "one UPDATE per request, without ids", target: "throughput ≥ 10",
			subject: side{direct, increment(1, withID), 1, inFlight},
			yard:    side{update, increment(1, false), 1, inFlight},
		}.measure(t)
	}
}

func idText(withID bool) string {
	if withID {
		return "with request_id"
	}
	return "without request_id"
}

// TestEmbedded measures embedded mode.
func TestEmbedded(t *testing.T) {
	i := plusonetest.Start(t, build(t), "--data="+filepath.Join(testproc.TempDir(t), "plusone.db"))
	embedded, echo := target{name: "embedded", addr: i.GRPCAddr, pid: i.Process.PID()}, yardstick(t, echo, "")
	for _, withID := range []bool{true, false} {
		comparison{
			work: "embedded mode, Increment " + idText(withID) + ", 1,000 keys", against: "echo", target: "throughput ≥ 0.6",
			subject: side{embedded, increment(1000, withID), 1, inFlight},
			yard:    side{echo, increment(1000, withID), 1, inFlight},
		}.measure(t)
	}
}
