package chaos_test

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
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
	cutAt(boundCommit, "the answer to a commit lost", netfault.CutAnswer, of(toPostgres)),
	cutAt(boundCommit, "the connection cut before a commit", netfault.CutRequest, of(toPostgres)),
	network("server and Postgres", of(toPostgres)),
}

// boundCommit is in each execution of a COMMIT: the name under which pgx has prepared it, which is made of its text. The
// text itself is sent once by a connection, when it is prepared. The 0 before it ends the name of a portal.
var boundCommit = func() string {
	digest := sha256.Sum256([]byte("COMMIT"))
	return "\x00stmtcache_" + hex.EncodeToString(digest[:24])
}()

// cutAt cuts connections where they send a pattern, some times one after the other.
func cutAt(pattern, name string, how netfault.Cut, which links) fault {
	return plain(name, func(d *deployment) {
		for range 1 + d.rand.IntN(10) {
			for _, p := range which(d) {
				p.CutOn(pattern, how)
			}
			d.eventually("a connection is cut", func() bool {
				return slices.ContainsFunc(which(d), (*netfault.Proxy).Fired) || d.load.failed()
			})
		}
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
	cutAt("EVALSHA", "the answer of a script lost", netfault.CutAnswer, of(toRedis)),
	// Most of these keys have only changes without a request id, which nothing but the store's own care keeps from counting twice.
	cutAt(keyName(6), "the answer about a key lost", netfault.CutAnswer, of(toRedis)),
	cutAt("EVALSHA", "the connection cut before a script", netfault.CutRequest, of(toRedis)),
	network("process and Redis", of(toRedis)),
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
