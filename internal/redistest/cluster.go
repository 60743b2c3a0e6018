package redistest

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/testproc"
)

// clusterTimeout bounds each step of forming a cluster, which takes about 2 s in all.
const clusterTimeout = 60 * time.Second

// slotCount is the number of slots of every Redis Cluster.
const slotCount = 16384

// busOffset is how much higher the port for other nodes is than that for clients.
const busOffset = 10000

// NodeTimeout is after how long without an answer the nodes of a cluster take another one for failed.
const NodeTimeout = 5 * time.Second

// Cluster is a Redis Cluster that lives as long as its test.
type Cluster struct {
	// Addrs are those of all nodes, masters first.
	Addrs []string
	// Masters share the slots in equal, contiguous ranges, in this order.
	Masters []*Server
	// Replicas are those of the first master, then those of the second, and so on.
	Replicas []*Server

	t testing.TB
}

// StartCluster starts a cluster of masters, each with that many replicas, and waits until every node
// finds it healthy. The options are for every node.
func StartCluster(t testing.TB, masters, replicas int, opts ...Option) *Cluster {
	t.Helper()
	opts = append([]Option{
		Config("cluster-enabled", "yes"),
		Config("cluster-node-timeout", strconv.FormatInt(NodeTimeout.Milliseconds(), 10)),
		// By default a master waits 5 s for more replicas before it serves the first one.
		Config("repl-diskless-sync-delay", "0"),
	}, opts...)
	nodes := make([]*Server, masters*(1+replicas))
	for i := range nodes {
		nodes[i] = Start(t, opts...)
	}
	c := &Cluster{Masters: nodes[:masters], Replicas: nodes[masters:], t: t}
	ways := make([]announced, len(nodes))
	for i, n := range nodes {
		c.Addrs = append(c.Addrs, n.Addr)
		ways[i] = n.announce()
	}
	for i, n := range c.Masters {
		first, last := slotCount*i/masters, slotCount*(i+1)/masters-1
		n.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(last))
		n.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	// Introducing every pair is quicker than waiting for gossip.
	for i, n := range nodes {
		for _, other := range ways[i+1:] {
			n.Do("CLUSTER", "MEET", other.host, other.port, other.busPort)
		}
	}
	c.WaitHealthy()
	for i, n := range c.Replicas {
		n.Do("CLUSTER", "REPLICATE", c.Masters[i/replicas].Do("CLUSTER", "MYID"))
	}
	for _, n := range c.Masters {
		c.wait(n, "had its replicas online", func(ask askFunc) bool {
			return strings.Count(ask("INFO", "replication"), ",state=online,") == replicas
		})
	}
	return c
}

// announced is how a node says that it can be reached.
type announced struct{ host, port, busPort string }

// announce has a node be reached as the option Behind says, also after a restart.
func (s *Server) announce() announced {
	s.t.Helper()
	host, port := s.split(s.Addr)
	bus := strconv.Itoa(s.port.Number + busOffset)
	if s.settings.behind == nil {
		return announced{host, port, bus}
	}
	clientBy, busBy := s.settings.behind(s.Addr, net.JoinHostPort(host, bus))
	_, port = s.split(clientBy)
	_, bus = s.split(busBy)
	for _, d := range [][]string{{"cluster-announce-port", port}, {"cluster-announce-bus-port", bus}} {
		s.Do("CONFIG", "SET", d[0], d[1])
		s.settings.directives = append(s.settings.directives, d)
	}
	return announced{host, port, bus}
}

func (s *Server) split(addr string) (host, port string) {
	s.t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return host, port
}

// Nodes are all nodes, masters first.
func (c *Cluster) Nodes() []*Server {
	return append(append([]*Server(nil), c.Masters...), c.Replicas...)
}

// WaitHealthy waits until every node knows all the others, sees all slots served, and takes the cluster
// for healthy, as it does again some time after a node was restarted.
func (c *Cluster) WaitHealthy() {
	c.t.Helper()
	known := strconv.Itoa(len(c.Addrs))
	for _, n := range c.Nodes() {
		c.wait(n, "found the cluster healthy", func(ask askFunc) bool {
			info := ask("CLUSTER", "INFO")
			return infoField(info, "cluster_state") == "ok" &&
				infoField(info, "cluster_known_nodes") == known &&
				infoField(info, "cluster_slots_ok") == strconv.Itoa(slotCount)
		})
	}
}

// askFunc runs a command; the answer is "" if there is none.
type askFunc func(args ...string) string

func (c *Cluster) wait(n *Server, what string, done func(askFunc) bool) {
	c.t.Helper()
	ask := func(args ...string) string {
		answer, err := command(n.Addr, time.Second, args...)
		if err != nil {
			return ""
		}
		return answer
	}
	if !testproc.Poll(clusterTimeout, 10*time.Millisecond, func() bool { return done(ask) }) {
		c.t.Fatalf("node %s never %s:\n%s", n.Addr, what, testproc.Indent(ask("CLUSTER", "NODES")))
	}
}
