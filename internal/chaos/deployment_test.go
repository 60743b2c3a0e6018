package chaos_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// patience bounds every wait. What is waited for takes far less on an idle machine.
	patience     = 2 * time.Minute
	pollInterval = 25 * time.Millisecond
	// shards, and windows so short that most faults meet several, yet long enough for a busy machine to drain them.
	shards = 4
	window = time.Second
	dedupe = 5 * time.Minute
)

// failpoints is the program as the suite runs it.
var failpoints = plusonetest.Variant{Tags: []string{"failpoint"}}

// deployment is plusone with all that it needs, under test.
type deployment struct {
	t       testing.TB
	rand    *rand.Rand
	history *history.Recorder
	load    *load
	faults  map[string]int
	// rollbacks are among the faults: what Redis lost may be lost, and some changes stay in doubt.
	rollbacks bool

	binary   string
	args     []string // of every process
	nodes    []*node  // servers
	worker   *node    // drains only; nil if the mode has none
	postgres *pgtest.Server
	redis    *redistest.Server
	cluster  *cluster
	disk     string // folder of a small disk that holds the ledger, "" if there is none
	sqlite   string // file, in embedded mode
}

// node is a process with the network around it.
type node struct {
	*plusonetest.Instance
	// front is before the server; toRedis and toPostgres are its own ways to them. Those that it does not have are nil.
	front, toRedis, toPostgres *netfault.Proxy
}

func front(n *node) *netfault.Proxy { return n.front }

func toRedis(n *node) *netfault.Proxy { return n.toRedis }

func toPostgres(n *node) *netfault.Proxy { return n.toPostgres }

// links are the connections of one kind in a deployment.
type links func(*deployment) []*netfault.Proxy

// of are the links of each process.
func of(link func(*node) *netfault.Proxy) links {
	return func(d *deployment) []*netfault.Proxy {
		var all []*netfault.Proxy
		for _, n := range d.processes() {
			if p := link(n); p != nil {
				all = append(all, p)
			}
		}
		return all
	}
}

func (d *deployment) heal() {
	for _, kind := range []links{of(front), of(toRedis), of(toPostgres), toCluster, betweenClusterNodes} {
		for _, p := range kind(d) {
			p.Heal()
		}
	}
}

// scenario is a kind of deployment with the faults that it must stand.
type scenario struct {
	name      string
	rollbacks bool
	deploy    func(*deployment)
	faults    []fault
}

var scenarios = []scenario{
	{name: "embedded", deploy: (*deployment).embedded, faults: slices.Concat(serverFaults, commitFaults)},
	{name: "direct", deploy: (*deployment).direct, faults: slices.Concat(serverFaults, commitFaults, postgresFaults)},
	{name: "sharded", deploy: (*deployment).sharded, faults: slices.Concat(serverFaults, liveFaults, postgresFaults, workerFaults, redisFaults)},
	{name: "rollback", rollbacks: true, deploy: (*deployment).sharded, faults: slices.Concat(rollbackFaults, workerFaults, serverFaults)},
	{name: "cluster", rollbacks: true, deploy: (*deployment).onCluster, faults: slices.Concat(clusterFaults, workerFaults, serverFaults)},
	{name: "disk embedded", deploy: (*deployment).embeddedOnSmallDisk, faults: slices.Concat(diskFaults, serverFaults)},
	{name: "disk direct", deploy: (*deployment).directOnSmallDisk, faults: diskFaults},
	{name: "disk sharded", deploy: (*deployment).shardedOnSmallDisk, faults: slices.Concat(diskFaults, workerFaults)},
}

func (d *deployment) embedded() {
	d.embeddedIn(testproc.TempDir(d.t))
}

func (d *deployment) embeddedIn(dir string) {
	d.sqlite = filepath.Join(dir, "plusone.db")
	d.args = []string{"--data=" + d.sqlite}
	d.nodes = []*node{d.server("")}
}

func (d *deployment) direct() { d.directOn(pgtest.Start(d.t)) }

func (d *deployment) directOn(postgres *pgtest.Server) {
	d.postgres = postgres
	for i := range 2 {
		d.nodes = append(d.nodes, d.server(d.skewed(i)))
	}
}

func (d *deployment) sharded() { d.shardedOn(pgtest.Start(d.t)) }

func (d *deployment) shardedOn(postgres *pgtest.Server) {
	d.postgres = postgres
	d.redis = redistest.Start(d.t, redistest.AppendFsyncAlways(),
		// Or a start after an hour would take minutes.
		redistest.Config("auto-aof-rewrite-percentage", "100"), redistest.Config("auto-aof-rewrite-min-size", "16mb"))
	d.shardedNodes()
}

func (d *deployment) onCluster() {
	d.postgres = pgtest.Start(d.t)
	d.cluster = startCluster(d.t)
	d.shardedNodes()
}

func (d *deployment) shardedNodes() {
	d.args = []string{
		fmt.Sprint("--shards=", shards), fmt.Sprint("--window=", window), "--flush-interval=50ms",
	}
	live := []string{
		// Bases that are often loaded anew, and keys that are soon spread.
		"--base-ttl=1s", "--missing-ttl=1s", "--hot-threshold=300",
	}
	for i := range 2 {
		d.nodes = append(d.nodes, d.server(d.skewed(i), live...))
	}
	d.worker = d.connect(&node{})
	d.worker.Instance = plusonetest.Launch(d.t, d.binary, d.line("flush", d.worker)...)
	d.worker.WaitReady()
}

// skewed is the offset of the clock of a server.
func (d *deployment) skewed(i int) string {
	if !*skewFlag || i != 1 {
		return ""
	}
	if d.rand.IntN(2) == 0 {
		return "-1h"
	}
	return "1h"
}

// server starts a server behind a proxy.
func (d *deployment) server(skew string, args ...string) *node {
	n := d.connect(&node{})
	binary := d.binary
	if skew != "" {
		variant, err := skewedClock()
		if err == nil {
			binary, err = plusonetest.Build(variant)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	line := append(d.line("serve", n), args...)
	port, err := testproc.ReservePort()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = port.Release() })
	n.Instance = plusonetest.Launch(d.t, binary, append(line, "--grpc-addr="+port.Addr())...)
	if skew != "" {
		n.Kill()
		n.SetEnv("PLUSONE_CLOCK_SKEW=" + skew)
		n.Spawn()
	}
	n.WaitReady()
	n.front = netfault.Start(d.t, port.Addr())
	return n
}

// connect gives a process its own ways to the servers that it uses.
func (d *deployment) connect(n *node) *node {
	if d.postgres != nil {
		n.toPostgres, _ = netfault.StartURL(d.t, d.postgres.URL)
	}
	if d.redis != nil {
		n.toRedis = netfault.Start(d.t, d.redis.Addr)
	}
	return n
}

// line is the command line of a process.
func (d *deployment) line(command string, n *node) []string {
	line := append([]string{command}, d.args...)
	if n.toPostgres != nil {
		u, err := url.Parse(d.postgres.URL)
		if err != nil {
			d.t.Fatal(err)
		}
		u.Host = n.toPostgres.Addr()
		line = append(line, "--postgres-url="+u.String(), "--postgres-max-conns=6")
	}
	switch {
	case n.toRedis != nil:
		line = append(line, "--redis-url=redis://"+n.toRedis.Addr())
	case d.cluster != nil:
		line = append(line, "--redis-url="+d.cluster.url())
	}
	return line
}

// processes are all of plusone.
func (d *deployment) processes() []*node {
	if d.worker == nil {
		return d.nodes
	}
	return append(slices.Clone(d.nodes), d.worker)
}

// dial makes a client that reaches all servers by their proxies.
func (d *deployment) dial(opts ...client.Option) *client.Client {
	addrs := make([]string, len(d.nodes))
	for i, n := range d.nodes {
		addrs[i] = n.front.Addr()
	}
	return plusonetest.DialAddrs(d.t, addrs, opts...)
}

// eventually waits for a condition on other processes.
func (d *deployment) eventually(what string, done func() bool) {
	d.t.Helper()
	if !testproc.Poll(patience, pollInterval, done) {
		d.t.Fatalf("never: %s", what)
	}
}

// query reads rows of the ledger, past all proxies.
func (d *deployment) query(statement string, each func(scan func(...any) error) error) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	driver, source := "sqlite", "file:"+d.sqlite+"?mode=ro&_pragma=busy_timeout(5000)"
	if d.postgres != nil {
		driver, source = "pgx", d.postgres.URL
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// watermark is the last window that every shard has drained, in Unix milliseconds.
func (d *deployment) watermark() int64 {
	var low int64
	if err := d.query(`SELECT min(watermark) FROM shards`, func(scan func(...any) error) error { return scan(&low) }); err != nil {
		return 0
	}
	return low
}

// drain waits until all that was acknowledged up to now is in the ledger. The load must go on, on all shards.
func (d *deployment) drain() {
	d.t.Helper()
	if d.worker == nil {
		return
	}
	now := time.Now().UnixMilli()
	d.eventually("all that was acknowledged is drained", func() bool { return d.load.failed() || d.watermark() > now })
}

// urls are those of the servers themselves, past all proxies but those of a cluster.
func (d *deployment) urls() []string {
	var urls []string
	if d.postgres != nil {
		urls = append(urls, "--postgres-url="+d.postgres.URL)
	}
	switch {
	case d.redis != nil:
		urls = append(urls, "--redis-url="+d.redis.URL())
	case d.cluster != nil:
		urls = append(urls, "--redis-url="+d.cluster.url())
	}
	return urls
}

// rollbacksLogged is how often the processes have logged that Redis went back in time.
func (d *deployment) rollbacksLogged() int {
	n := 0
	for _, p := range d.processes() {
		n += bytes.Count(p.Output(), []byte("redis went back in time"))
	}
	return n
}

// audit runs "plusone audit" beside the servers.
func (d *deployment) audit() {
	d.t.Helper()
	line := []string{"audit"}
	for _, arg := range append(d.args, d.urls()...) {
		switch name, _, _ := strings.Cut(arg, "="); name {
		case "--data", "--postgres-url", "--redis-url", "--shards", "--window":
			line = append(line, arg)
		}
	}
	if out, code := plusonetest.Execute(d.t, d.binary, nil, line...); code != 0 {
		d.t.Errorf("plusone audit exits %d:\n%s", code, testproc.Indent(out))
	}
}
