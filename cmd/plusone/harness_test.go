package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// patience bounds every wait. Tests take far less on an idle machine.
	patience     = 60 * time.Second
	pollInterval = 5 * time.Millisecond
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "plusone")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is in the folder for what may be lost
	binary = filepath.Join(dir, "plusone")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// plainEnv is the environment of a process: no settings of the machine that runs the tests.
func plainEnv(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, more...)
}

// execute runs a command line that ends by itself, and returns all that it wrote and its exit code.
func execute(t testing.TB, env []string, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env, cmd.Dir = plainEnv(env...), t.TempDir()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("plusone %s: %v\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// instance is a running "plusone serve" or "plusone flush".
type instance struct {
	t       testing.TB
	args    []string
	log     string
	seen    int // bytes of the log that were written before the last start
	process *testproc.Process

	grpcAddr, httpAddr string
}

// start starts a server on free ports, and waits until it is ready.
func start(t testing.TB, args ...string) *instance {
	t.Helper()
	i := launch(t, append([]string{"serve", "--grpc-addr=127.0.0.1:0"}, args...)...)
	i.waitReady()
	return i
}

// startAt starts a server on a port that stays its own over restarts.
func startAt(t testing.TB, args ...string) *instance {
	t.Helper()
	port, err := testproc.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Release() })
	i := launch(t, append([]string{"serve", "--grpc-addr=" + port.Addr()}, args...)...)
	i.waitReady()
	return i
}

// launch starts a command and does not wait.
func launch(t testing.TB, args ...string) *instance {
	t.Helper()
	i := &instance{
		t: t, args: append(args, "--http-addr=127.0.0.1:0", "--log-format=json"),
		log: filepath.Join(testproc.TempDir(t), "plusone.log"),
	}
	t.Cleanup(func() {
		if err := i.process.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("plusone %s wrote:\n%s", strings.Join(args, " "), testproc.Indent(i.process.LogTail(20)))
		}
	})
	i.spawn()
	return i
}

func (i *instance) spawn() {
	i.t.Helper()
	i.seen = len(i.output())
	process, err := testproc.Start(testproc.Command{
		Path: binary, Args: i.args, Env: plainEnv(), Dir: filepath.Dir(i.log), Log: i.log,
	})
	if err != nil {
		i.t.Fatal(err)
	}
	i.process = process
}

func (i *instance) output() []byte {
	text, err := os.ReadFile(i.log)
	if err != nil && !os.IsNotExist(err) {
		i.t.Fatal(err)
	}
	return text
}

// logged finds the last line with a message since the last start.
func (i *instance) logged(message string) map[string]any {
	var found map[string]any
	for line := range bytes.Lines(i.output()[i.seen:]) {
		var entry map[string]any
		if json.Unmarshal(line, &entry) == nil && entry["msg"] == message {
			found = entry
		}
	}
	return found
}

func (i *instance) waitReady() {
	i.t.Helper()
	var ready map[string]any
	if !testproc.Poll(patience, pollInterval, func() bool {
		ready = i.logged("ready")
		return ready != nil || i.process.Exited()
	}) || ready == nil {
		i.t.Fatalf("plusone %s did not get ready", strings.Join(i.args, " "))
	}
	i.grpcAddr, _ = ready["grpc_addr"].(string)
	i.httpAddr, _ = ready["http_addr"].(string)
}

// kill ends the process with SIGKILL.
func (i *instance) kill() {
	i.t.Helper()
	if err := i.process.Kill(); err != nil {
		i.t.Fatal(err)
	}
}

// restart starts the process again, after a kill if it still runs.
func (i *instance) restart() {
	i.t.Helper()
	i.kill()
	i.spawn()
	i.waitReady()
}

// terminate asks the process to stop in order, and waits until it has.
func (i *instance) terminate() {
	i.t.Helper()
	if err := i.process.Signal(syscall.SIGTERM); err != nil {
		i.t.Fatal(err)
	}
	if !i.process.Wait(patience) {
		i.t.Fatal("SIGTERM did not end the process")
	}
	if i.logged("stopped") == nil {
		i.t.Fatal("the process did not stop in order")
	}
}

// page reads a page of the HTTP side.
func (i *instance) page(path string) (code int, body string) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.httpAddr+path, nil)
	must(i.t, err)
	resp, err := http.DefaultClient.Do(req)
	must(i.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(i.t, err)
	return resp.StatusCode, string(text)
}

// dial makes a client of servers, as if one name resolved to all of them.
func dial(t testing.TB, servers ...*instance) *client.Client {
	t.Helper()
	return dialWith(t, servers)
}

func dialWith(t testing.TB, servers []*instance, opts ...client.Option) *client.Client {
	t.Helper()
	var state resolver.State
	for _, s := range servers {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.grpcAddr}}})
	}
	r := manual.NewBuilderWithScheme("servers")
	r.InitialState(state)
	c, err := client.Dial("servers:///all", append(opts, client.WithTimeout(patience), client.WithDialOptions(grpc.WithResolvers(r)))...)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition on other processes.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(patience, pollInterval, done) {
		t.Fatalf("never: %s", what)
	}
}

// count is the count of a key, read afresh.
func count(t testing.TB, c *client.Client, key string) int64 {
	t.Helper()
	got, err := c.Get(context.Background(), key, client.Fresh())
	must(t, err)
	if got.Stale {
		t.Fatal("a fresh read of a store that works is stale")
	}
	return got.Count
}

// load increments keys until it is ended. Every call must be acknowledged, however often the client has to
// try.
type load struct {
	t     testing.TB
	keys  []string
	acked []atomic.Int64 // by key
	total atomic.Int64
	ended atomic.Bool
	group sync.WaitGroup
}

func startLoad(t testing.TB, c *client.Client, callers int, keys ...string) *load {
	l := &load{t: t, keys: keys, acked: make([]atomic.Int64, len(keys))}
	for caller := range callers {
		l.group.Go(func() {
			for n := caller; !l.ended.Load(); n++ {
				key := n % len(keys)
				if _, err := c.Increment(context.Background(), keys[key], 1); err != nil {
					t.Errorf("increment under load: %v", err)
					return
				}
				l.acked[key].Add(1)
				l.total.Add(1)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() {
	l.ended.Store(true)
	l.group.Wait()
}

// progress waits until so many more calls have been acknowledged.
func (l *load) progress(calls int64) {
	l.t.Helper()
	target := l.total.Load() + calls
	eventually(l.t, fmt.Sprintf("%d calls acknowledged", target), func() bool {
		return l.total.Load() >= target || l.t.Failed()
	})
	if l.t.Failed() {
		l.t.FailNow()
	}
}

// check ends the load and compares what was acknowledged with what read returns.
func (l *load) check(read func(key string) int64) {
	l.t.Helper()
	l.end()
	for i, key := range l.keys {
		if got, want := read(key), l.acked[i].Load(); got != want {
			l.t.Errorf("%s counts %d, and %d increments were acknowledged", key, got, want)
		}
	}
}
