package chaos_test

import (
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// cluster is a Redis Cluster of three masters with a replica each.
type cluster struct {
	*redistest.Cluster
	// masters and replicas as they are now: the replica of each master has its place.
	masters, replicas []*redistest.Server
	// clients are before the port of each node that clients and its replica use, buses before the one for other nodes.
	clients, buses []*netfault.Proxy
}

func startCluster(t testing.TB) *cluster {
	c := &cluster{}
	c.Cluster = redistest.StartCluster(t, 3, 1, redistest.AppendFsyncAlways(),
		// A replica takes over when it is told to, and not when a busy machine has held up its master.
		redistest.Config("cluster-replica-no-failover", "yes"),
		redistest.Config("cluster-replica-validity-factor", "0"),
		redistest.Behind(func(client, bus string) (string, string) {
			c.clients = append(c.clients, netfault.Start(t, client))
			c.buses = append(c.buses, netfault.Start(t, bus))
			return c.clients[len(c.clients)-1].Addr(), c.buses[len(c.buses)-1].Addr()
		}))
	c.masters, c.replicas = c.Masters, c.Replicas
	return c
}

// url names all nodes.
func (c *cluster) url() string {
	addrs := make([]string, len(c.clients))
	for i, p := range c.clients {
		addrs[i] = p.Addr()
	}
	return "redis://" + addrs[0] + "?addr=" + strings.Join(addrs[1:], "&addr=")
}

func toCluster(d *deployment) []*netfault.Proxy {
	if d.cluster == nil {
		return nil
	}
	return d.cluster.clients
}

func betweenClusterNodes(d *deployment) []*netfault.Proxy {
	if d.cluster == nil {
		return nil
	}
	return d.cluster.buses
}

// caughtUp reports whether a replica has all that its master had when it was first asked.
func (c *cluster) caughtUp(i int) func() bool {
	want := c.masters[i].Info("master_repl_offset")
	return func() bool { return c.replicas[i].Info("master_repl_offset") >= want }
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
	plain("cluster: node not heard by the others for longer than cluster-node-timeout", func(d *deployment) {
		p := pick(d, d.cluster.buses)
		p.Drop(netfault.ToServer, true)
		p.Drop(netfault.ToClient, true)
		d.during(redistest.NodeTimeout, redistest.NodeTimeout+2*time.Second)
		p.Heal()
		d.cluster.WaitHealthy()
	}),
	network("cluster nodes", betweenClusterNodes),
	network("processes, replica and node of a cluster", toCluster),
	cutAt("EVALSHA", "cluster: the answer of a script lost", netfault.CutAnswer, toCluster),
	plain("cluster: orderly failover", func(d *deployment) {
		d.cluster.promote(d, d.rand.IntN(len(d.cluster.masters)))
		d.cluster.WaitHealthy()
	}),
	plain("cluster: failover to a stale replica", func(d *deployment) {
		c := d.cluster
		i := d.rand.IntN(len(c.masters))
		d.record(history.Snapshot)
		d.eventually("the replica has caught up", c.caughtUp(i))
		// Not hung, since it would go on with what its connection holds for it.
		c.replicas[i].Kill()
		d.drain()
		d.goBack(true, func() {
			c.masters[i].Kill()
			c.replicas[i].Restart()
			c.promote(d, i, "TAKEOVER")
			c.replicas[i].Restart()
			c.WaitHealthy()
		})
	}),
}
