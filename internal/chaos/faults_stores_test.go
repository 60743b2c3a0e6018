package chaos_test

import (
	"time"

	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/netfault"
)

// postgresFaults are those of a ledger in Postgres.
var postgresFaults = []fault{
	plain("Postgres killed", func(d *deployment) {
		d.postgres.Kill()
		d.during(0, time.Second)
		d.postgres.Restart()
	}),
	plain("Postgres hung", func(d *deployment) {
		d.postgres.Stop()
		d.during(200*time.Millisecond, 2*time.Second)
		d.postgres.Cont()
	}),
	plain("Postgres ends all sessions", func(d *deployment) {
		for range 1 + d.rand.IntN(5) {
			err := d.query(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'`,
				func(scan func(...any) error) error { var n int; return scan(&n) })
			if err != nil {
				d.t.Fatal(err)
			}
			d.during(time.Millisecond, 50*time.Millisecond)
		}
	}),
	cutAt("COMMIT", "the answer to a commit lost", netfault.CutAnswer),
	cutAt("COMMIT", "the connection cut before a commit", netfault.CutRequest),
	network("server and Postgres", func(n *node) *netfault.Proxy { return n.toPostgres }),
}

// cutAt cuts connections to Postgres at a statement.
func cutAt(pattern, name string, how netfault.Cut) fault {
	return plain(name, func(d *deployment) {
		for _, n := range d.processes() {
			n.toPostgres.CutOn(pattern, how)
		}
		d.eventually("a commit is cut", func() bool {
			fired := false
			for _, n := range d.processes() {
				fired = fired || n.toPostgres.Fired()
			}
			return fired || d.load.failed()
		})
	})
}

// redisFaults are those of a Redis that keeps what it acknowledged.
var redisFaults = []fault{
	plain("Redis killed, with appendfsync always", func(d *deployment) {
		d.redis.Kill()
		d.during(0, 500*time.Millisecond)
		d.redis.Restart()
	}),
	plain("Redis hung", func(d *deployment) {
		d.redis.Stop()
		d.during(100*time.Millisecond, 2500*time.Millisecond)
		d.redis.Cont()
	}),
	plain("Redis loses all scripts and connections", func(d *deployment) {
		d.redis.Do("SCRIPT", "FLUSH")
		d.redis.Do("CLIENT", "KILL", "TYPE", "normal")
	}),
	network("process and Redis", func(n *node) *netfault.Proxy { return n.toRedis }),
}

// rollbackFaults take Redis back in time.
var rollbackFaults = []fault{
	plain("Redis restored from a snapshot that was drained since", func(d *deployment) {
		d.record(history.Snapshot)
		past := d.redis.Snapshot()
		d.drain()
		d.during(0, 500*time.Millisecond)
		d.goBack(true, func() { d.redis.Restore(past) })
	}),
	plain("Redis restored from a snapshot of a moment ago", func(d *deployment) {
		d.record(history.Snapshot)
		past := d.redis.Snapshot()
		d.during(0, window)
		d.goBack(false, func() { d.redis.Restore(past) })
	}),
	plain("FLUSHALL", func(d *deployment) {
		// What is drained is all that it leaves.
		d.record(history.Snapshot)
		d.drain()
		d.goBack(true, func() { d.redis.Do("FLUSHALL") })
	}),
}

func (d *deployment) record(kind history.Kind) { d.history.Record(history.Event{Kind: kind}) }

// goBack takes Redis back to what the last Snapshot event was about, and waits until that is settled. If the ledger is
// ahead of it, it must have been noticed loudly.
func (d *deployment) goBack(noticed bool, do func()) {
	d.t.Helper()
	if d.load.failed() {
		return
	}
	before := d.rollbacksLogged()
	d.observe("", d.totals())
	d.record(history.Rollback)
	do()
	d.record(history.Restored)
	d.drain()
	if noticed && !d.load.failed() {
		d.eventually("the rollback is logged", func() bool { return d.rollbacksLogged() > before })
	}
}
