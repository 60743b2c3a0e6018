// Package plusonetest builds and runs the program plusone in tests. Whatever it started ends with the test, and with
// the test process, even if that is killed.
package plusonetest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// Patience bounds every wait. Tests take far less on an idle machine.
	Patience = 60 * time.Second
	// PollInterval is how often a process is asked for what a test waits for.
	PollInterval = 5 * time.Millisecond
)

// Instance is a running "plusone serve" or "plusone flush". Its methods are for one goroutine at a time. Those that
// fail the test, as they say, end the goroutine that calls them, which so must be that of the test; the others may be
// called by any.
type Instance struct {
	// GRPCAddr and HTTPAddr are where it serves, known once it was ready, and anew after each restart.
	GRPCAddr, HTTPAddr string
	// Process is the one that was started last.
	Process *testproc.Process

	t      testing.TB
	binary string
	args   []string
	env    []string
	log    string
	seen   int // bytes of the log that were written before the last start
}

// Start starts a server on free ports, and waits until it is ready. It fails the test.
func Start(t testing.TB, binary string, args ...string) *Instance {
	t.Helper()
	return serve(t, binary, "127.0.0.1:0", args)
}

// StartAt is Start with a port for the API that stays its own over restarts. It fails the test.
func StartAt(t testing.TB, binary string, args ...string) *Instance {
	t.Helper()
	port, err := testproc.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Release() })
	return serve(t, binary, port.Addr(), args)
}

func serve(t testing.TB, binary, addr string, args []string) *Instance {
	t.Helper()
	i := Launch(t, binary, slices.Concat([]string{"serve", "--grpc-addr=" + addr}, args)...)
	i.GRPCAddr = addr
	i.WaitReady()
	return i
}

// Launch starts a command and does not wait. It fails the test.
func Launch(t testing.TB, binary string, args ...string) *Instance {
	t.Helper()
	return LaunchWith(t, binary, nil, args...)
}

// LaunchWith is Launch with variables of the environment, as SetEnv sets them. It fails the test.
func LaunchWith(t testing.TB, binary string, env []string, args ...string) *Instance {
	t.Helper()
	i := &Instance{
		t: t, binary: binary, env: env, args: slices.Concat(args, []string{"--http-addr=127.0.0.1:0", "--log-format=json"}),
		log: filepath.Join(testproc.TempDir(t), "plusone.log"),
	}
	i.start()
	t.Cleanup(i.end)
	return i
}

// end is at the end of the test.
func (i *Instance) end() {
	if err := i.Process.Kill(); err != nil {
		i.t.Error(err)
	}
	if bytes.Contains(i.Output(), []byte("WARNING: DATA RACE")) {
		i.t.Errorf("plusone %s has a race:\n%s", strings.Join(i.args, " "), testproc.Indent(string(i.Output())))
	}
	if i.t.Failed() {
		i.t.Logf("plusone %s wrote:\n%s", strings.Join(i.args, " "), testproc.Indent(i.Process.LogTail(20)))
	}
}

func (i *Instance) start() {
	i.t.Helper()
	i.seen = len(i.Output())
	process, err := testproc.Start(testproc.Command{
		Path: i.binary, Args: i.args, Env: plainEnv(i.env...), Dir: filepath.Dir(i.log), Log: i.log,
	})
	if err != nil {
		i.t.Fatal(err)
	}
	i.Process = process
}

// SetEnv sets variables for the process, from its next start on, in place of those that were set before.
func (i *Instance) SetEnv(env ...string) { i.env = env }

// Spawn starts the process again, after it has ended, and does not wait until it is ready. It fails the test.
func (i *Instance) Spawn() {
	i.t.Helper()
	if !i.Process.Exited() {
		i.t.Fatalf("plusone %s still runs", strings.Join(i.args, " "))
	}
	i.start()
}

// WaitReady waits until the process says that it is ready. It fails the test.
func (i *Instance) WaitReady() {
	i.t.Helper()
	var ready map[string]any
	if !testproc.Poll(Patience, PollInterval, func() bool {
		ready = i.Logged("ready")
		return ready != nil || i.Process.Exited()
	}) || ready == nil {
		i.t.Fatalf("plusone %s did not get ready", strings.Join(i.args, " "))
	}
	i.GRPCAddr, _ = ready["grpc_addr"].(string)
	i.HTTPAddr, _ = ready["http_addr"].(string)
}

// Kill ends the process with SIGKILL. It fails the test.
func (i *Instance) Kill() {
	i.t.Helper()
	if err := i.Process.Kill(); err != nil {
		i.t.Fatal(err)
	}
}

// Restart starts the process again, after a kill if it still runs, and waits until it is ready. It fails the test.
func (i *Instance) Restart() {
	i.t.Helper()
	i.Kill()
	i.Spawn()
	i.WaitReady()
}

// Terminate asks the process to stop in order, and waits until it has. It fails the test.
func (i *Instance) Terminate() {
	i.t.Helper()
	i.Signal(syscall.SIGTERM)
	if !i.WaitExit(Patience) {
		i.t.Fatal("SIGTERM did not end the process")
	}
	if i.Logged("stopped") == nil {
		i.t.Fatal("the process did not stop in order")
	}
}

// Signal sends a signal; a process that has ended is left in peace.
func (i *Instance) Signal(sig syscall.Signal) {
	i.t.Helper()
	if err := i.Process.Signal(sig); err != nil {
		i.t.Errorf("signal %v: %v", sig, err)
	}
}

// WaitExit waits until the process has ended, by itself or not, and reports whether it did in time.
func (i *Instance) WaitExit(timeout time.Duration) bool { return i.Process.Wait(timeout) }

// Output is all that the process wrote, since the first start.
func (i *Instance) Output() []byte {
	i.t.Helper()
	text, err := os.ReadFile(i.log)
	if err != nil && !os.IsNotExist(err) {
		i.t.Errorf("read the log: %v", err)
	}
	return text
}

// Logged finds the last line with a message since the last start; it is nil if there is none.
func (i *Instance) Logged(message string) map[string]any {
	i.t.Helper()
	var found map[string]any
	for line := range bytes.Lines(i.Output()[i.seen:]) {
		var entry map[string]any
		if json.Unmarshal(line, &entry) == nil && entry["msg"] == message {
			found = entry
		}
	}
	return found
}
