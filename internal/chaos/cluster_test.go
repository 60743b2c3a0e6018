package chaos_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// cluster is a Redis Cluster of three masters with a replica each.
type cluster struct {
	*redistest.Cluster
	// masters and replicas as they are now: the replica of each master has its place.
	masters, replicas []*redistest.Server
}

func startCluster(t testing.TB) *cluster {
	c := redistest.StartCluster(t, 3, 1, redistest.AppendFsyncAlways(), redistest.Config("cluster-replica-validity-factor", "0"))
	return &cluster{Cluster: c, masters: c.Masters, replicas: c.Replicas}
}

func (c *cluster) url() string {
	return "redis://" + c.Addrs[0] + "?addr=" + strings.Join(c.Addrs[1:], "&addr=")
}

// caughtUp reports whether a replica has all that its master had when it was first asked.
func (c *cluster) caughtUp(i int) func() bool {
	want := offset(c.masters[i])
	return func() bool { return offset(c.replicas[i]) >= want }
}

func offset(s *redistest.Server) int64 {
	for line := range strings.Lines(s.Do("INFO", "replication")) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "master_repl_offset:"); ok {
			n, _ := strconv.ParseInt(text, 10, 64) // 0 is asked again
			return n
		}
	}
	return 0
}

// promote makes a replica the master, and what was the master its replica.
func (c *cluster) promote(d *deployment, i int, how ...string) {
	replica := c.replicas[i]
	replica.Do(append([]string{"CLUSTER", "FAILOVER"}, how...)...)
	d.eventually("the replica is master", func() bool { return strings.Contains(replica.Do("INFO", "replication"), "role:master") })
	c.masters[i], c.replicas[i] = replica, c.masters[i]
}

var clusterFaults = []fault{
	plain("cluster: master killed and restarted", func(d *deployment) {
		m := pick(d, d.cluster.masters)
		m.Kill()
		d.during(0, 500*time.Millisecond)
		m.Restart()
		d.cluster.WaitHealthy()
	}),
	plain("cluster: master hung", func(d *deployment) {
		m := pick(d, d.cluster.masters)
		m.Stop()
		d.during(100*time.Millisecond, 2*time.Second)
		m.Cont()
	}),
	plain("cluster: orderly failover", func(d *deployment) {
		d.cluster.promote(d, d.rand.IntN(len(d.cluster.masters)))
		d.cluster.WaitHealthy()
	}),
	plain("cluster: failover to a stale replica", func(d *deployment) {
		c := d.cluster
		i := d.rand.IntN(len(c.masters))
		d.record(history.Snapshot)
		d.eventually("the replica has caught up", c.caughtUp(i))
		c.replicas[i].Stop()
		d.drain()
		d.goBack(true, func() {
			c.masters[i].Kill()
			c.replicas[i].Cont()
			c.promote(d, i, "TAKEOVER")
			c.replicas[i].Restart()
			c.WaitHealthy()
		})
	}),
}
