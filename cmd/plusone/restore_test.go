package main_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// A copy of the file of embedded mode, made by VACUUM INTO while the server counts, is a whole one: it has all that was
// acknowledged before, each change with its request id and its history.
func TestEmbeddedBackup(t *testing.T) {
	t.Parallel()
	dir := testproc.TempDir(t)
	file, backup := filepath.Join(dir, "plusone.db"), filepath.Join(dir, "backup.db")
	s := start(t, "--data="+file)
	c := dial(t, s)
	id := uuid.Must(uuid.NewV7()).String()
	_, err := c.Increment(context.Background(), "views/before", 1, client.WithRequestID(id))
	must(t, err)
	l := startLoad(t, c, 4, "views/a", "views/b", "views/c")
	l.progress(500)
	before := l.total.Load()
	_, err = deploymentDB(t, []string{"--data=" + file}).Exec("VACUUM INTO ?", backup)
	must(t, err)
	l.progress(500)
	l.end()
	s.Kill()

	s = start(t, "--data="+backup)
	c = dial(t, s)
	var restored int64
	for _, key := range l.keys {
		restored += count(t, c, key)
	}
	if restored < before || restored >= l.total.Load() {
		t.Errorf("the copy has %d changes: %d had been acknowledged before it was made, %d when the server ended", restored, before, l.total.Load())
	}
	receipt, err := c.Increment(context.Background(), "views/before", 1, client.WithRequestID(id))
	must(t, err)
	if receipt.Outcome != client.Duplicate {
		t.Errorf("a retry of a change that the copy has: %v, want %v", receipt.Outcome, client.Duplicate)
	}
	if found, rest, code := runAudit(t, []string{"--data=" + backup}); code != 0 {
		t.Errorf("audit of the copy exits %d: %q\n%s", code, found, rest)
	}
}

// Postgres is restored to what pg_dump saw while a server ran. What was drained since is gone. Each shard notices with the
// next window that is drained, and from then on everything agrees.
func TestPostgresRestore(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	lost := pgtest.NewDatabase(t)
	args := shardedArgs(redis.URL(), lost)
	s := start(t, args...)
	c := dial(t, s)
	var keys []string // on all four shards
	for n := range 16 {
		keys = append(keys, fmt.Sprintf("views/%d", n))
	}
	add := func(delta int64) {
		t.Helper()
		for _, key := range keys {
			_, err := c.Increment(context.Background(), key, delta)
			must(t, err)
		}
	}
	drained := func(url string, want int64) {
		t.Helper()
		eventually(t, "the ledger has all", func() bool {
			for _, key := range keys {
				if postgresTotal(t, url, key) != want {
					return false
				}
			}
			return true
		})
	}
	add(10)
	drained(lost, 10)
	dump := filepath.Join(testproc.TempDir(t), "plusone.dump")
	run(t, pgtest.Program(t, "pg_dump"), "--format=custom", "--file="+dump, "--dbname="+lost)
	add(5)
	drained(lost, 15)
	for _, key := range keys {
		if got := count(t, c, key); got != 15 { // and its base is in Redis
			t.Errorf("%s counts %d, want 15", key, got)
		}
	}
	s.Terminate()

	restored := pgtest.NewDatabase(t)
	run(t, pgtest.Program(t, "pg_restore"), "--exit-on-error", "--dbname="+restored, dump)
	args = shardedArgs(redis.URL(), restored)
	s = start(t, args...)
	c = dial(t, s)
	if got := count(t, c, keys[0]); got != 15 {
		t.Errorf("%s counts %d before there was a window to drain, want 15 of the cache in Redis", keys[0], got)
	}
	add(1)
	drained(restored, 11)
	eventually(t, "each shard has noticed", func() bool { return s.Metric("plusone_flush_rollbacks_total") == 4 })
	for _, key := range keys {
		if got := count(t, c, key); got != 11 {
			t.Errorf("%s counts %d in the end, want 11", key, got)
		}
	}
	if found, rest, code := runAudit(t, args); code != 0 {
		t.Errorf("audit in the end exits %d: %q\n%s", code, found, rest)
	}
}

// run runs another program.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(within(t, patience), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}
