package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// put replaces a file at once.
func put(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path+".new", []byte(text), 0o600))
	must(t, os.Rename(path+".new", path))
}

// reasonOf is the reason of a failed call, empty if it did not fail.
func reasonOf(err error) string {
	var failure *client.Error
	if errors.As(err, &failure) {
		return failure.Reason
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestPolicyCheck(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "policies.yaml")
	put(t, file, "default: {max_delta: 5}\nnamespaces: {views: {guard: true, shards: 8, limits: {actor: 1/10s}}}\n")
	output, code := execute(t, nil, "policy", "check", file)
	if want := "default: max_delta=5\nnamespaces.views: max_delta=5 guard=true shards=8 limits.actor=\"1/10s\"\n"; code != 0 || output != want {
		t.Errorf("exit code %d:\n%s", code, output)
	}
	put(t, file, "default: {max_delta: 6, nonsense: 1}\nnamespaces:\n  views: {dedupe_window: 2m}\n  hot: {shards: 5}\n")
	output, code = execute(t, nil, "policy", "check", "--max-delta=5", "--dedupe-window=1m", "--shards=4", file)
	for _, want := range []string{
		file + ":1: max_delta must be", file + `:1: unknown key "nonsense"`, file + ":3: dedupe_window must be",
		file + ":4: shards must be a whole number from 1 to 4",
	} {
		if code != failed || !strings.Contains(output, want) {
			t.Errorf("exit code %d, lacks %s:\n%s", code, want, output)
		}
	}
	if output, code := execute(t, nil, "policy", "check", file+".none"); code != failed || !strings.Contains(output, "no such file") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
}

// A server does not start with policies or a deny list that it cannot use.
func TestPolicyRefusals(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	for text, want := range map[string]string{
		"default: {max_delta: 11}": "policy file: line 1: max_delta must be a whole number from 1 to 10",
		"default: {guard: true}":   "policy file: line 1: guard is true, and the server has no guard to ask",
		"":                         "policy file: the file is empty",
	} {
		put(t, file, text)
		output, code := execute(t, nil, "serve", "--max-delta=10", "--data="+filepath.Join(t.TempDir(), "x.db"), "--policy-file="+file)
		if code != failed || !strings.Contains(output, want) {
			t.Errorf("%s: exit code %d:\n%s", text, code, output)
		}
	}
	// How many shards there are is known where there are any.
	put(t, file, "default: {shards: 5}")
	output, code := execute(t, nil, "serve", "--shards=4", "--redis-url=redis://127.0.0.1:1", "--postgres-url=postgres://127.0.0.1:1/x", "--policy-file="+file)
	if code != failed || !strings.Contains(output, "policy file: line 1: shards must be a whole number from 1 to 4") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
	put(t, file, "two words")
	output, code = execute(t, nil, "serve", "--data="+filepath.Join(t.TempDir(), "x.db"), "--deny-file="+file)
	if code != failed || !strings.Contains(output, "deny file: line 1: one actor a line") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
}

// In sharded mode limits hold for all servers together, files and the set in Redis are followed, and a namespace's history is
// kept as its policy says, also by a worker alone.
func TestPolicies(t *testing.T) {
	t.Parallel()
	redis, url := redistest.Start(t), pgtest.NewDatabase(t)
	dir := t.TempDir()
	policies, denied := filepath.Join(dir, "policies.yaml"), filepath.Join(dir, "denied")
	const rules = "namespaces:\n  views: {limits: {actor: %d/24h}, once_per: 24h}\n  raw: {history: none}\n  fine: {history: minute}\n  hot: {hot_threshold: 20, shards: 3}\n"
	put(t, policies, fmt.Sprintf(rules, 4))
	put(t, denied, "user:bad # of the file\n")
	redis.Do("SADD", "plusone:denied", "user:worse")
	args := append(shardedArgs(redis.URL(), url), "--policy-file="+policies)
	gate := []string{"--flush=false", "--deny-file=" + denied, "--deny-redis-key=plusone:denied"}
	serve := append(without(args, "--flush-interval"), gate...)
	first, second := start(t, serve...), start(t, serve...)
	launch(t, append([]string{"flush"}, args...)...).WaitReady() // before the file is spoiled
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	clients := []*client.Client{
		plusonetest.Dial(t, []*plusonetest.Instance{first}), plusonetest.Dial(t, []*plusonetest.Instance{second}),
	}
	view := func(server, post int, actor string) (client.Receipt, error) {
		return clients[server%2].Increment(ctx, fmt.Sprint("views/post:", post), 1, client.ByActor(actor))
	}

	for i := range 4 {
		if _, err := view(i, i, "user:1"); err != nil {
			t.Fatal(err)
		}
	}
	for server := range 2 {
		if _, err := view(server, 9, "user:1"); !errors.Is(err, client.ErrRateLimited) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("server %d, after the actor's 4 tokens: %v", server, err)
		}
	}
	if receipt, err := view(0, 1, "user:2"); err != nil || receipt.Outcome != client.Applied {
		t.Errorf("another actor: %+v, %v", receipt, err)
	}
	if receipt, err := view(1, 1, "user:2"); err != nil || receipt.Outcome != client.AlreadyCounted {
		t.Errorf("once per 24h: %+v, %v", receipt, err)
	}
	for _, actor := range []string{"user:bad", "user:worse"} {
		if _, err := view(0, 1, actor); reasonOf(err) != "ACTOR_BLOCKED" {
			t.Errorf("%s: %v", actor, err)
		}
	}

	// A file that cannot be used changes nothing, and a later one that can is in force.
	put(t, policies, "namespaces: {views: {limits: {actor: many}}}")
	eventually(t, "the file is seen to be wrong", func() bool { return first.Metric(`plusone_reload_failing{file="policy"}`) == 1 })
	if _, err := view(0, 9, "user:1"); !errors.Is(err, client.ErrRateLimited) {
		t.Errorf("after a wrong file: %v", err)
	}
	put(t, policies, fmt.Sprintf(rules, 1_000_000))
	put(t, denied, "user:3\n")
	redis.Do("SREM", "plusone:denied", "user:worse")
	eventually(t, "the new policies and deny lists are in force", func() bool {
		_, limited := view(0, 9, "user:1")
		_, bad := view(0, 9, "user:bad")
		_, worse := view(0, 9, "user:worse")
		_, three := view(0, 9, "user:3")
		return limited == nil && bad == nil && worse == nil && reasonOf(three) == "ACTOR_BLOCKED"
	})

	// History.
	for _, key := range []string{"raw/1", "fine/1", "other/1"} {
		if _, err := clients[0].Increment(ctx, key, 1); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is drained", func() bool { return postgresTotal(t, url, "other/1") == 1 && postgresTotal(t, url, "raw/1") == 1 })
	history := func(key string) (rows int) {
		conn := pgtest.Connect(t, url)
		must(t, conn.QueryRow(ctx, `SELECT count(*) FROM counter_history WHERE key = $1`, key).Scan(&rows))
		return rows
	}
	if raw, fine, other := history("raw/1"), history("fine/1"), history("other/1"); raw != 0 || fine != 1 || other != 1 {
		t.Errorf("rows of history: %d, %d and %d, want 0, 1 and 1", raw, fine, other)
	}
	// A hot key of a namespace is spread over as many shards as its policy says, which its marker tells for good.
	eventually(t, "a key is found hot", func() bool {
		for range 50 {
			_, err := clients[0].Increment(ctx, "hot/1", 1)
			must(t, err)
		}
		return first.Metric("plusone_shard_spread_keys") == 1
	})
	eventually(t, "its marker is drained", func() bool {
		var width int
		err := pgtest.Connect(t, url).QueryRow(ctx, `SELECT coalesce(sum(spread % 1024), 0) FROM counters WHERE key = 'hot/1'`).Scan(&width)
		return err == nil && width == 3
	})
	audit := append([]string{"audit"}, without(args, "--postgres-max-conns", "--flush-interval", "--policy-file")...)
	if output, code := execute(t, nil, audit...); code != 0 {
		t.Errorf("audit: exit code %d\n%s", code, output)
	}
	// What the limiter leaves in Redis goes by itself.
	if n := redis.Do("EVAL", `local n = 0
for _, key in ipairs(redis.call('KEYS', 'plusone:*:limit:*')) do if redis.call('PTTL', key) < 0 then n = n + 1 end end
return n`, "0"); n != "0" {
		t.Errorf("%s buckets never expire", n)
	}
}

// In embedded mode limits are kept in memory.
func TestPoliciesInMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "p.yaml"), "default: {limits: {caller: 2/24h}, hot_threshold: 5, shards: 1024}")
	s := start(t, "--data="+filepath.Join(dir, "plusone.db"), "--policy-file="+filepath.Join(dir, "p.yaml"))
	c := dial(t, s)
	for i := range 3 {
		_, err := c.Increment(context.Background(), "a", 1)
		if i < 2 && err != nil || i == 2 && !errors.Is(err, client.ErrRateLimited) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if s.Metric("plusone_gate_refused_total") != 1 {
		t.Errorf("%v refused", s.Metric("plusone_gate_refused_total"))
	}
	for _, setting := range []string{"hot_threshold", "shards"} {
		if !strings.Contains(string(s.Output()), setting+" has no effect") {
			t.Errorf("no warning of %s:\n%s", setting, s.Output())
		}
	}
}
