package chaos_test

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/internal/netfault"
)

// fault is something that happens to a deployment under load, and ends.
type fault struct {
	name string
	// do returns the name under which it is counted, "" for its own, or notReached.
	do func(*deployment) string
}

// notReached is the name of a fault that did not happen, since nothing came to the place for it.
const notReached = "not reached"

func plain(name string, do func(*deployment)) fault {
	return fault{name, func(d *deployment) string { do(d); return "" }}
}

// during has the load go on for a while, in which whatever was injected is met by many calls, or by none since all of
// them wait.
func (d *deployment) during(least, most time.Duration) {
	timer := time.NewTimer(least + time.Duration(d.rand.Int64N(int64(most-least))))
	<-timer.C
}

func pick[T any](d *deployment, from []T) T { return from[d.rand.IntN(len(from))] }

// serverFaults are those of any mode.
var serverFaults = []fault{
	plain("server killed", func(d *deployment) {
		n := pick(d, d.nodes)
		n.Kill()
		d.during(0, 300*time.Millisecond)
		n.Restart()
	}),
	plain("all servers killed", func(d *deployment) {
		for _, n := range d.nodes {
			n.Kill()
		}
		for _, n := range d.nodes {
			n.Restart()
		}
	}),
	plain("server hung", func(d *deployment) {
		n := pick(d, d.nodes)
		n.Signal(syscall.SIGSTOP)
		d.during(100*time.Millisecond, 2500*time.Millisecond)
		n.Signal(syscall.SIGCONT)
	}),
	plain("rolling restart", rollingRestart),
	network("client and server", of(front)),
}

// rollingRestart stops one server after the other in order, which no caller may notice.
func rollingRestart(d *deployment) {
	d.load.patient.Store(true)
	defer d.load.patient.Store(false)
	// What faults before it have left in doubt must not be taken for its doing.
	d.load.progress(200)
	before := d.history.Stats()
	for _, n := range d.nodes {
		n.Terminate()
		n.Spawn()
		n.WaitReady()
		d.load.progress(callers)
	}
	after := d.history.Stats()
	if n := after.Doubts - before.Doubts; n > 0 {
		d.t.Errorf("a rolling restart left %d changes in doubt", n)
	}
	if n := after.Refused - before.Refused; n > 0 {
		d.t.Errorf("a rolling restart had %d changes refused", n)
	}
	if n := after.FailedReads - before.FailedReads; n > 0 {
		d.t.Errorf("a rolling restart had %d reads fail", n)
	}
}

// network are the faults of one kind of connection.
func network(between string, which links) fault {
	return fault{"network between " + between, func(d *deployment) string {
		p := pick(d, which(d))
		what := pick(d, networkFaults)
		what.do(d, p)
		return what.name + " between " + between
	}}
}

var networkFaults = []struct {
	name string
	do   func(*deployment, *netfault.Proxy)
}{
	{"latency", func(d *deployment, p *netfault.Proxy) {
		p.SetLatency(time.Duration(1+d.rand.IntN(150)) * time.Millisecond)
		d.during(200*time.Millisecond, time.Second)
	}},
	{"little bandwidth", func(d *deployment, p *netfault.Proxy) {
		p.SetRate(20_000 + d.rand.IntN(100_000))
		d.during(200*time.Millisecond, time.Second)
	}},
	{"connections reset", func(d *deployment, p *netfault.Proxy) {
		for range 1 + d.rand.IntN(5) {
			p.Reset()
			d.during(time.Millisecond, 50*time.Millisecond)
		}
	}},
	{"connections refused", func(d *deployment, p *netfault.Proxy) {
		p.Refuse(true)
		p.Reset()
		d.during(100*time.Millisecond, time.Second)
	}},
	{"requests dropped", func(d *deployment, p *netfault.Proxy) {
		p.Drop(netfault.ToServer, true)
		d.during(100*time.Millisecond, 1500*time.Millisecond)
	}},
	{"answers dropped", func(d *deployment, p *netfault.Proxy) {
		p.Drop(netfault.ToClient, true)
		d.during(100*time.Millisecond, 1500*time.Millisecond)
	}},
	{"connections half-closed", func(d *deployment, p *netfault.Proxy) {
		p.HalfClose(pick(d, []netfault.Direction{netfault.ToServer, netfault.ToClient}))
		d.during(50*time.Millisecond, 300*time.Millisecond)
	}},
}

// commitFaults are those of the modes that answer after a commit of the ledger.
var commitFaults = []fault{
	diesAt("direct.commit.before", func(d *deployment) *node { return pick(d, d.nodes) }),
	diesAt("direct.commit.after", func(d *deployment) *node { return pick(d, d.nodes) }),
	plain("killed in a slow commit", func(d *deployment) {
		// A fast disk leaves little time between an answer that comes too early and its commit.
		n := pick(d, d.nodes)
		n.SetEnv(fmt.Sprintf("PLUSONE_FAILPOINTS=direct.commit.before=pause:2s@%d", 1+d.rand.IntN(20)))
		n.Restart()
		d.during(200*time.Millisecond, 1500*time.Millisecond)
		n.SetEnv()
		n.Restart()
	}),
}

// liveFaults are those of the live store of sharded mode.
var liveFaults = []fault{
	diesAt("shard.write.answered", func(d *deployment) *node { return pick(d, d.nodes) }),
	diesAt("shard.load.before", func(d *deployment) *node { return pick(d, d.nodes) }),
	plain("loads of bases held up", heldLoads),
}

// heldLoads has all servers read the ledger and load what they read only when a window or two have been drained since,
// again and again.
func heldLoads(d *deployment) {
	var pauses []string
	for hit := range 20 {
		pauses = append(pauses, fmt.Sprintf("shard.load.before=pause:%v@%d", window+time.Duration(d.rand.Int64N(int64(window))), 1+hit))
	}
	for _, n := range d.nodes {
		n.SetEnv("PLUSONE_FAILPOINTS=" + strings.Join(pauses, ","))
		n.Restart()
	}
	d.during(3*window, 5*window)
	for _, n := range d.nodes {
		n.SetEnv()
		n.Restart()
	}
}

// diesAt has a process kill itself at a point.
func diesAt(point string, which func(*deployment) *node) fault {
	return fault{"killed at " + point, func(d *deployment) string {
		n := which(d)
		n.SetEnv(fmt.Sprintf("PLUSONE_FAILPOINTS=%s=kill@%d", point, 1+d.rand.IntN(2)))
		n.Kill()
		n.Spawn()
		if !n.WaitExit(4 * time.Second) {
			// Others drain the shards, or nothing was lost that this step is for.
			n.SetEnv()
			n.Restart()
			return notReached
		}
		n.SetEnv()
		n.Spawn()
		n.WaitReady()
		return ""
	}}
}

func theWorker(d *deployment) *node { return d.worker }

// workerFaults kill the worker at every step of the flush, or stall it there while it loses its lock to another one.
var workerFaults = func() []fault {
	faults := []fault{
		plain("worker killed", func(d *deployment) {
			d.worker.Kill()
			d.during(0, 300*time.Millisecond)
			d.worker.Restart()
		}),
		plain("worker hung, its lock taken over", func(d *deployment) {
			d.worker.Signal(syscall.SIGSTOP)
			d.worker.toPostgres.Reset()
			d.during(200*time.Millisecond, time.Second)
			d.worker.Signal(syscall.SIGCONT)
		}),
		network("worker and Postgres", func(d *deployment) []*netfault.Proxy { return []*netfault.Proxy{d.worker.toPostgres} }),
	}
	for _, point := range failpoint.Points() {
		if strings.HasPrefix(point, "flush.") {
			faults = append(faults, diesAt(point, theWorker))
		}
	}
	for _, point := range []string{"flush.scan.after", "flush.apply.commit.before", "flush.apply.after", "flush.begin.after", "flush.move.after"} {
		faults = append(faults, stallsAt(point))
	}
	return faults
}()

// stallsAt has the worker pause at a point, and lose its lock meanwhile, so that another worker takes the same window.
func stallsAt(point string) fault {
	return plain("stalled at "+point+", its lock taken over", func(d *deployment) {
		d.worker.SetEnv(fmt.Sprintf("PLUSONE_FAILPOINTS=%s=pause:700ms@%d", point, 1+d.rand.IntN(10)))
		d.worker.Restart()
		for range 10 { // some of them in the pause
			d.worker.toPostgres.Reset()
			d.during(50*time.Millisecond, 150*time.Millisecond)
		}
		d.worker.SetEnv()
		d.worker.Restart()
	})
}
