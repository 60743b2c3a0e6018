package main_test

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/shard"
)

const differing = 1

// runAudit runs "plusone audit" on a deployment and returns what it printed about differences, sorted, its log and
// summary, and its exit code.
func runAudit(t *testing.T, args []string, more ...string) (differences []string, rest string, code int) {
	t.Helper()
	line := without(args, "--postgres-max-conns", "--flush-interval", "--hot-threshold")
	output, code := execute(t, nil, slices.Concat([]string{"audit"}, line, more)...)
	var others strings.Builder
	for text := range strings.Lines(output) {
		if strings.HasPrefix(text, "difference ") {
			differences = append(differences, strings.TrimSpace(strings.TrimPrefix(text, "difference ")))
		} else {
			others.WriteString(text)
		}
	}
	slices.Sort(differences)
	return differences, others.String(), code
}

// deploymentDB opens the database of a deployment.
func deploymentDB(t *testing.T, args []string) *sql.DB {
	t.Helper()
	var db *sql.DB
	var err error
	for _, arg := range args {
		switch name, value, _ := strings.Cut(arg, "="); name {
		case "--postgres-url":
			db, err = sql.Open("pgx", value)
		case "--data":
			db, err = sql.Open("sqlite", "file:"+value+"?_pragma=busy_timeout(5000)")
		}
	}
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db
}

// TestAuditFindsAndRepairs plants differences in each mode. Keys are counted, liked and drained before.
func TestAuditFindsAndRepairs(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, total := m.deploy(t)
			sharded := m.name == "sharded" || m.name == "cluster"
			s := start(t, args...)
			countAndLike(t, dial(t, s))
			eventually(t, "the ledger has all", func() bool { return total(t, "views/a") == 7 && total(t, "views/b") == 7 })
			if found, rest, code := runAudit(t, args); code != 0 || found != nil || !strings.Contains(rest, "audited counters=2 ") {
				t.Fatalf("audit exits %d: %q\n%s", code, found, rest)
			}
			if sharded {
				s.Terminate() // bases that are read again would be loaded anew
			}

			db := deploymentDB(t, args)
			at := func(key string) string {
				if !sharded {
					return key
				}
				return fmt.Sprintf("%s shard=%d", key, shard.Home(key, 4))
			}
			mustExec(t, db, `UPDATE counters SET count = 3 WHERE key = 'views/a'`)
			mustExec(t, db, `DELETE FROM likes WHERE key = 'views/b' AND actor = 'ann'`)
			want := []string{
				"key=" + at("views/a") + " count=3 history=7",
				"key=views/b likes=2 liked_rows=1",
			}
			if sharded { // the bases are now apart from the ledger
				want = append(want, "key="+at("views/a")+" base=7:2 ledger=3:2")
				slices.Sort(want)
			}
			found, rest, code := runAudit(t, args)
			if code != differing || !slices.Equal(found, want) || !strings.Contains(rest, fmt.Sprintf("differences=%d", len(want))) {
				t.Errorf("audit exits %d: %q, want %q\n%s", code, found, want, rest)
			}

			if m.name == "embedded" {
				if _, rest, code := runAudit(t, args, "--repair"); code != misuse || !strings.Contains(rest, "in use by another process") {
					t.Errorf("a repair beside a server exits %d:\n%s", code, rest)
				}
				s.Terminate()
			}
			found, rest, code = runAudit(t, args, "--repair")
			if code != differing || len(found) < 2 || !strings.Contains(rest, "msg=repaired key=views/a count=3 now=7") ||
				!strings.Contains(rest, "msg=repaired key=views/b likes=2 now=1") {
				t.Errorf("repair exits %d: %q\n%s", code, found, rest)
			}
			if found, rest, code := runAudit(t, args); code != 0 {
				t.Errorf("audit after the repair exits %d: %q\n%s", code, found, rest)
			}
			c := dial(t, start(t, args...))
			for key, likes := range map[string]int64{"views/a": 2, "views/b": 1} {
				got, err := c.Get(context.Background(), key, client.Fresh())
				must(t, err)
				if got.Count != 7 || got.Likes != likes {
					t.Errorf("after the repair %s counts %d with %d likes, want 7 with %d", key, got.Count, got.Likes, likes)
				}
			}
		})
	}
}

func mustExec(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	_, err := db.ExecContext(within(t, patience), statement)
	must(t, err)
}

func countAndLike(t *testing.T, c *client.Client) {
	t.Helper()
	for _, key := range []string{"views/a", "views/b"} {
		_, err := c.Increment(context.Background(), key, 5)
		must(t, err)
		for _, actor := range []string{"ann", "ben"} {
			_, _, err := setLike(c, key, actor, true)
			must(t, err)
		}
		if got := count(t, c, key); got != 7 {
			t.Errorf("%s counts %d", key, got)
		}
	}
}

// A base that is wrong is found and dropped, and the next read is right.
func TestAuditOfBases(t *testing.T) {
	t.Parallel()
	url := pgtest.NewDatabase(t)
	redis := redistest.Start(t)
	args := shardedArgs(redis.URL(), url)
	c := dial(t, start(t, args...))
	countAndLike(t, c)
	eventually(t, "the ledger has all", func() bool { return postgresTotal(t, url, "views/a") == 7 && postgresTotal(t, url, "views/b") == 7 })
	prefix := func(key string) string { return "plusone:{" + shard.Tags(4)[shard.Home(key, 4)] + "}:" }
	eventually(t, "windows are moved", func() bool {
		return redis.Do("LLEN", prefix("views/a")+"windows") == "0" && redis.Do("LLEN", prefix("views/b")+"windows") == "0"
	})
	base := func(key string) string {
		return prefix(key) + "base:" + cmp.Or(redis.Do("HGET", prefix(key)+"meta", "gen"), "0") + ":" + key
	}
	redis.Do("SET", base("views/a"), "8:2")
	redis.Do("SET", base("views/b"), "7:3")
	want := []string{
		fmt.Sprintf("key=views/a shard=%d base=8:2 ledger=7:2", shard.Home("views/a", 4)),
		fmt.Sprintf("key=views/b shard=%d base=7:3 ledger=7:2", shard.Home("views/b", 4)),
	}
	for _, more := range [][]string{nil, {"--repair"}} {
		found, rest, code := runAudit(t, args, more...)
		if code != differing || !slices.Equal(found, want) {
			t.Errorf("audit %v exits %d: %q, want %q\n%s", more, code, found, want, rest)
		}
	}
	if found, rest, code := runAudit(t, args); code != 0 {
		t.Errorf("audit after the repair exits %d: %q\n%s", code, found, rest)
	}
	got, err := c.Get(context.Background(), "views/b", client.Fresh())
	must(t, err)
	if got.Count != 7 || got.Likes != 2 {
		t.Errorf("count is %d with %d likes", got.Count, got.Likes)
	}
}

// An audit finds nothing wrong while servers and workers are at it.
func TestAuditBesideServers(t *testing.T) {
	t.Parallel()
	for _, m := range likeModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, _ := m.deploy(t)
			var servers []*plusonetest.Instance
			for range m.servers {
				servers = append(servers, start(t, append(args, m.args...)...))
			}
			c := dial(t, servers...)
			var ended atomic.Bool
			var calls atomic.Int64
			var callers sync.WaitGroup
			for range 16 {
				callers.Go(func() {
					for !ended.Load() {
						key := fmt.Sprint("live/", min(rand.IntN(60), 40))
						_, err := c.Increment(context.Background(), key, 1)
						if err == nil {
							_, _, err = setLike(c, key, fmt.Sprint("user:", rand.IntN(20)), rand.IntN(2) == 0)
						}
						if err != nil {
							t.Errorf("under load: %v", err)
							return
						}
						calls.Add(1)
					}
				})
			}
			defer callers.Wait()
			defer ended.Store(true)
			for n := range int64(8) {
				eventually(t, "calls go on", func() bool { return calls.Load() > 200*n || t.Failed() })
				if found, rest, code := runAudit(t, args); code != 0 {
					t.Fatalf("audit exits %d: %q\n%s", code, found, rest)
				}
			}
		})
	}
}

// What is wrong with an audit is told apart from what it finds.
func TestAuditFails(t *testing.T) {
	t.Parallel()
	file := filepath.Join(testproc.TempDir(t), "plusone.db")
	fails := func(want string, args ...string) {
		t.Helper()
		for _, more := range [][]string{nil, {"--repair"}} {
			if found, rest, code := runAudit(t, args, more...); code != misuse || found != nil || !strings.Contains(rest, want) {
				t.Errorf("audit %v exits %d: %q, want %q in\n%s", more, code, found, want, rest)
			}
		}
	}
	fails("no such file", "--data="+file)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file was made: %v", err)
	}
	url := pgtest.NewDatabase(t)
	fails("there is no ledger yet", "--postgres-url="+url)
	if output, code := execute(t, nil, "migrate", "--postgres-url="+url); code != 0 {
		t.Fatalf("migrate: exit code %d:\n%s", code, output)
	}
	fails("created with dedupe-window 5m0s", "--postgres-url="+url, "--dedupe-window=1m")
	runSQL(t, url, `DELETE FROM plusone_migrations WHERE version_id > 1`)
	fails("run plusone migrate first", "--postgres-url="+url)
	fails("store is unavailable", "--postgres-url=postgres://127.0.0.1:1/x")
	fails("needs --postgres-url", "--redis-url=redis://127.0.0.1:1")
}

// The audit of a file that a killed server left behind reads what that server committed.
func TestAuditAfterKill(t *testing.T) {
	t.Parallel()
	args := []string{"--data=" + filepath.Join(testproc.TempDir(t), "plusone.db")}
	s := start(t, args...)
	countAndLike(t, dial(t, s))
	s.Kill()
	if found, rest, code := runAudit(t, args); code != 0 || !strings.Contains(rest, "audited counters=2 differences=0") {
		t.Errorf("audit exits %d: %q\n%s", code, found, rest)
	}
}
