package failpoint_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const variable = "PLUSONE_FAILPOINTS="

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func build(t *testing.T, tags ...string) string {
	t.Helper()
	binary, err := plusonetest.Build(plusonetest.Variant{Tags: tags})
	must(t, err)
	return binary
}

// startWith starts a server that has the variable from its second start on, since the first makes the deployment.
func startWith(t *testing.T, failpoints string, args ...string) (*plusonetest.Instance, *client.Client) {
	t.Helper()
	s := plusonetest.StartAt(t, build(t, "failpoint"), args...)
	s.SetEnv(variable + failpoints)
	s.Restart()
	return s, plusonetest.Dial(t, []*plusonetest.Instance{s})
}

func embedded(t *testing.T) string {
	return "--data=" + filepath.Join(testproc.TempDir(t), "plusone.db")
}

func increment(t *testing.T, c *client.Client) {
	t.Helper()
	_, err := c.Increment(context.Background(), "a", 1)
	must(t, err)
}

func count(t *testing.T, c *client.Client) int64 {
	t.Helper()
	got, err := c.Get(context.Background(), "a", client.Fresh())
	must(t, err)
	return got.Count
}

func waitExit(t *testing.T, s *plusonetest.Instance) {
	t.Helper()
	if !s.WaitExit(plusonetest.Patience) {
		t.Fatal("the server lives on")
	}
}

// Without the tag the program has nothing of the points, not even a call.
func TestNoCodeWithoutTag(t *testing.T) {
	t.Parallel()
	has := func(binary string) bool {
		symbols, err := exec.CommandContext(t.Context(), "go", "tool", "nm", binary).Output()
		must(t, err)
		return bytes.Contains(symbols, []byte("plusone/internal/failpoint."))
	}
	if has(build(t)) {
		t.Error("there is code of the points without the tag")
	}
	if !has(build(t, "failpoint")) {
		t.Error("there is no code of the points with the tag")
	}
}

// What is not understood keeps the program from starting, and it says why.
func TestRefusals(t *testing.T) {
	t.Parallel()
	binary := build(t, "failpoint")
	for _, test := range []struct{ text, want string }{
		{"flush.begin.befor=kill@1", `there is no point "flush.begin.befor"`},
		{"flush.begin.before=kill@1,", `there is no point ""`},
		{"flush.begin.before", "must be kill@N"},
		{"flush.begin.before=kill", "must be kill@N"},
		{"flush.begin.before=kill@0", "counted from 1"},
		{"flush.begin.before=stop@1", `no action "stop"`},
		{"flush.begin.before=pause:long@1", "invalid duration"},
	} {
		out, code := plusonetest.Execute(t, binary, []string{variable + test.text}, "version")
		if code == 0 || !strings.Contains(out, test.want) {
			t.Errorf("%s: exit code %d, and the output lacks %q:\n%s", test.text, code, test.want, out)
		}
	}
}

// A server dies the second time that it gets to a point, and not before. Here that is after a commit of which the
// caller has not heard.
func TestKill(t *testing.T) {
	t.Parallel()
	s, c := startWith(t, "direct.commit.after=kill@2", embedded(t))
	increment(t, c)
	answered := make(chan error, 1)
	go func() {
		_, err := c.Increment(context.Background(), "a", 1)
		answered <- err
	}()
	waitExit(t, s)
	s.SetEnv()
	s.Spawn()
	s.WaitReady()
	must(t, <-answered)
	if got := count(t, c); got != 2 {
		t.Errorf("the count is %d, want 2", got)
	}
}

// everywhere has the program pause shortly at all points, and say so.
func everywhere() string {
	var all []string
	for _, name := range failpoint.Points() {
		all = append(all, name+"=pause:1ms@1")
	}
	return strings.Join(all, ",")
}

// reached are the points that a server says it has got to.
func reached(s *plusonetest.Instance) map[string]bool {
	names := map[string]bool{}
	for line := range strings.Lines(string(s.Output())) {
		var name string
		if _, err := fmt.Sscanf(line, "failpoint %s reached", &name); err == nil {
			names[name] = true
		}
	}
	return names
}

func checkReached(t *testing.T, s *plusonetest.Instance, prefixes ...string) {
	t.Helper()
	got := reached(s)
	for _, name := range failpoint.Points() {
		for _, prefix := range prefixes {
			if strings.HasPrefix(name, prefix) && !got[name] {
				t.Errorf("%s was not reached", name)
			}
		}
	}
}

// Every point is where some deployment gets to.
func TestPointsAreReached(t *testing.T) {
	t.Parallel()
	for name, arg := range map[string]func(*testing.T) string{
		"embedded": embedded,
		"direct":   func(t *testing.T) string { return "--postgres-url=" + pgtest.NewDatabase(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := startWith(t, everywhere(), arg(t))
			increment(t, c)
			checkReached(t, s, "direct.")
		})
	}
	t.Run("sharded", func(t *testing.T) {
		t.Parallel()
		redis := redistest.Start(t)
		s, c := startWith(t, "flush.apply.after=kill@1", "--redis-url="+redis.URL(),
			"--postgres-url="+pgtest.NewDatabase(t), "--shards=1", "--window=200ms", "--flush-interval=20ms")
		flushed := func(point string) {
			t.Helper()
			if !testproc.Poll(plusonetest.Patience, plusonetest.PollInterval, func() bool { return reached(s)[point] }) {
				t.Fatalf("%s was not reached", point)
			}
		}
		increment(t, c)
		waitExit(t, s)
		s.SetEnv(variable + everywhere())
		s.Restart()
		flushed("flush.discard.after") // of the window that the ledger has already
		if got := count(t, c); got != 1 {
			t.Errorf("the count is %d, want 1", got)
		}
		increment(t, c)
		flushed("flush.end.after")
		redis.Do("FLUSHALL")
		flushed("flush.restore.after")
		checkReached(t, s, "flush.", "shard.")
	})
}
