// Package redistest runs throwaway Redis servers for tests: single ones and clusters, real
// redis-server processes that can be killed, hung, restarted and rolled back to an older state.
package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// readyTimeout is generous: a start takes some 10 ms on an idle machine.
	readyTimeout = 30 * time.Second
	pollInterval = 2 * time.Millisecond
	// startAttempts covers the case that another process takes the port just before the server does.
	startAttempts = 5
)

// Option is a setting of a server.
type Option func(*settings)

type settings struct {
	directives [][]string
	appendOnly bool
	behind     func(client, bus string) (string, string)
}

// AppendFsyncAlways makes every acknowledged write durable: it survives Kill. Without it a server keeps
// nothing over a restart.
func AppendFsyncAlways() Option {
	return func(s *settings) {
		s.appendOnly = true
		s.directives = append(s.directives, []string{"appendonly", "yes"}, []string{"appendfsync", "always"})
	}
}

// MaxMemory limits the server's memory to bytes, beyond which policy (such as "volatile-lfu") decides.
func MaxMemory(bytes int64, policy string) Option {
	return func(s *settings) {
		s.directives = append(s.directives,
			[]string{"maxmemory", strconv.FormatInt(bytes, 10)}, []string{"maxmemory-policy", policy})
	}
}

// Config sets a directive of redis.conf.
func Config(directive string, values ...string) Option {
	return func(s *settings) { s.directives = append(s.directives, append([]string{directive}, values...)) }
}

// Behind has the nodes of a cluster reach each other, and clients reach them, by way of other addresses, such as those of
// proxies: the function is called once for each node with the address for clients and that for other nodes.
func Behind(announce func(client, bus string) (clientBy, busBy string)) Option {
	return func(s *settings) { s.behind = announce }
}

// Server is a Redis server that lives as long as its test. Its methods fail the test if they cannot do
// what they say; they must not be called concurrently, except for Do.
type Server struct {
	// Addr is host:port. It stays the same over restarts.
	Addr string

	t        testing.TB
	binary   string
	dir      string
	settings settings
	port     *testproc.Port
	process  *testproc.Process
}

// Start starts a server with an empty database.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s := &Server{t: t, binary: findBinary(t), dir: testproc.TempDir(t)}
	for _, opt := range opts {
		opt(&s.settings)
	}
	t.Cleanup(s.close)
	for attempt := 1; ; attempt++ {
		port, err := testproc.ReservePort()
		if err != nil {
			t.Fatal(err)
		}
		s.port, s.Addr = port, port.Addr()
		if err = s.start(); err == nil {
			return s
		}
		if attempt == startAttempts {
			t.Fatal(err)
		}
		if err := port.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

// findBinary finds redis-server, or Valkey's, which is as good.
func findBinary(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("redis-server is not on the PATH, and this test needs a real one: " +
		"run tools/install-servers.sh (Debian), or install Redis 7.0 or later")
	return ""
}

// close ends the server for good, and shows its log if the test failed.
func (s *Server) close() {
	if s.process != nil {
		if err := s.process.Quit(); err != nil {
			s.t.Error(err)
		}
		if s.t.Failed() {
			s.t.Logf("redis-server %s wrote:\n%s", s.Addr, testproc.Indent(s.process.LogTail(20)))
		}
	}
	if err := s.port.Release(); err != nil {
		s.t.Error(err)
	}
}

// start starts the process and waits until it serves.
func (s *Server) start() error {
	args := []string{
		"--bind", "127.0.0.1",
		"--port", strconv.Itoa(s.port.Number),
		"--dir", s.dir,
		"--save", "",
		// Rewrites of the append-only file are only in the way here: they cost time, and no file grows
		// large.
		"--auto-aof-rewrite-percentage", "0",
	}
	for _, d := range s.settings.directives {
		args = append(args, "--"+d[0])
		args = append(args, d[1:]...)
	}
	process, err := testproc.Start(testproc.Command{
		Path: s.binary, Args: args, Log: filepath.Join(s.dir, "redis.log"),
	})
	if err != nil {
		return err
	}
	s.process = process
	ready := testproc.Poll(readyTimeout, pollInterval, func() bool {
		return process.Exited() || s.serves()
	})
	if ready && !process.Exited() {
		return nil
	}
	if err := process.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("redis-server on %s did not get ready; it wrote:\n%s", s.Addr, testproc.Indent(process.LogTail(20)))
}

// serves reports whether this very server, and not another one on its port, has loaded its data.
func (s *Server) serves() bool {
	info, err := command(s.Addr, time.Second, "INFO")
	return err == nil &&
		infoField(info, "process_id") == strconv.Itoa(s.process.PID()) &&
		infoField(info, "loading") == "0"
}

// URL is the server's address in the form of a redis:// URL.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Do runs a command on a connection of its own and returns the answer, which must not be an array.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	answer, err := command(s.Addr, 10*time.Second, args...)
	if err != nil {
		s.t.Fatalf("%s on Redis %s: %v", args[0], s.Addr, err)
	}
	return answer
}

// Info is a number of INFO, such as used_memory.
func (s *Server) Info(field string) int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(infoField(s.Do("INFO"), field), 10, 64)
	if err != nil {
		s.t.Fatalf("%s in INFO of Redis %s: %v", field, s.Addr, err)
	}
	return n
}

// PID is the process of the server.
func (s *Server) PID() int { return s.process.PID() }

// Kill ends the server with SIGKILL, if it runs.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.process.Kill(); err != nil {
		s.t.Fatal(err)
	}
}

// Restart starts the server again on its port with its data, after a Kill if it still runs.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Stop hangs the server: it accepts connections and requests, and answers none.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP) }

// Cont ends a Stop.
func (s *Server) Cont() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Snapshot is what a server held at a moment.
type Snapshot struct{ rdb []byte }

// Snapshot takes a copy of all that the server holds.
func (s *Server) Snapshot() Snapshot {
	s.t.Helper()
	// Redis refuses to save while it does so in the background, as for a replica.
	var saveErr error
	if !testproc.Poll(readyTimeout, pollInterval, func() bool {
		_, saveErr = command(s.Addr, readyTimeout, "SAVE")
		return saveErr == nil
	}) {
		s.t.Fatalf("SAVE on Redis %s: %v", s.Addr, saveErr)
	}
	rdb, err := os.ReadFile(filepath.Join(s.dir, rdbName))
	if err != nil {
		s.t.Fatal(err)
	}
	return Snapshot{rdb: rdb}
}

// Restore rolls the server back to a snapshot, which may be of another server: it kills it, changes its
// data, and starts it again.
func (s *Server) Restore(snapshot Snapshot) {
	s.t.Helper()
	s.Kill()
	if err := s.replaceData(snapshot.rdb); err != nil {
		s.t.Fatal(err)
	}
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

const (
	rdbName = "dump.rdb"
	aofDir  = "appendonlydir"
	aofBase = "appendonly.aof.1.base.rdb"
)

// replaceData makes rdb all that the server will load. With an append-only file, that is its base.
func (s *Server) replaceData(rdb []byte) error {
	path, aof := filepath.Join(s.dir, rdbName), filepath.Join(s.dir, aofDir)
	if err := os.RemoveAll(aof); err != nil {
		return err
	}
	if s.settings.appendOnly {
		if err := os.Mkdir(aof, 0o755); err != nil {
			return err
		}
		manifest := "file " + aofBase + " seq 1 type b\n"
		if err := os.WriteFile(filepath.Join(aof, "appendonly.aof.manifest"), []byte(manifest), 0o644); err != nil {
			return err
		}
		path = filepath.Join(aof, aofBase)
	}
	return os.WriteFile(path, rdb, 0o644)
}

// infoField finds a field in the answer to INFO or CLUSTER INFO.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
