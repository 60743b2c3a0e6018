// Package pgtest runs throwaway PostgreSQL servers for tests, and fresh databases on a server that the
// tests of a process share. They are real servers, which can be killed, hung and restarted.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// readyTimeout is generous: a start takes some 50 ms on an idle machine, and longer after a crash.
	readyTimeout = 60 * time.Second
	pollInterval = 5 * time.Millisecond
	// startAttempts covers the case that another process takes the port just before the server does.
	startAttempts = 5
	// firstDatabase is there from initdb on.
	firstDatabase = "postgres"
)

var commonSettings = []string{
	"listen_addresses=127.0.0.1",
	"unix_socket_directories=",
	"max_connections=200",
	"shared_buffers=64MB",
	// In the data folder, so that nothing is left behind when the server is killed.
	"dynamic_shared_memory_type=mmap",
	"jit=off",
	"log_checkpoints=off",
}

// forgetfulSettings trade what survives a crash of the machine for speed.
var forgetfulSettings = []string{
	"fsync=off", "full_page_writes=off", "synchronous_commit=off",
	"wal_level=minimal", "max_wal_senders=0", "max_wal_size=4GB",
}

// Server is a PostgreSQL server that lives as long as its test. Its methods fail the test if they cannot
// do what they say, and must not be called concurrently.
type Server struct {
	// URL names an empty database and a superuser. It stays the same over restarts.
	URL string

	t testing.TB
	*instance
}

// Start starts a server that keeps what was committed, whatever crashes.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartIn(t, testproc.TempDir(t))
}

// StartIn is Start with all of the server's files in an empty folder, which other users may enter.
func StartIn(t testing.TB, dir string) *Server {
	t.Helper()
	inst, err := findInstallation()
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{installation: inst, dir: dir}
	t.Cleanup(func() {
		if i.process != nil && t.Failed() {
			t.Logf("postgres wrote:\n%s", testproc.Indent(i.process.LogTail(20)))
		}
		if err := i.close(); err != nil {
			t.Error(err)
		}
	})
	if err := i.create(); err != nil {
		t.Fatal(err)
	}
	return &Server{URL: i.url(firstDatabase), t: t, instance: i}
}

// Kill ends all of the server's processes with SIGKILL, if it runs.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.kill(); err != nil {
		s.t.Fatal(err)
	}
}

// Restart starts the server again on its port with its data, after a Kill if it still runs.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	// The killed processes may still be on their way out, and the server refuses to start as long as one
	// holds the shared memory.
	var err error
	if !testproc.Poll(readyTimeout, pollInterval, func() bool {
		err = s.start()
		return err == nil
	}) {
		s.t.Fatal(err)
	}
}

// PID is that of the server's first process, whose children the others are.
func (s *Server) PID() int { return s.process.PID() }

// Exited reports whether the server has ended, by itself or not.
func (s *Server) Exited() bool { return s.process.Exited() }

// Stop hangs the server: the system accepts connections for it, and nobody answers on them or on those
// that are open.
func (s *Server) Stop() {
	s.t.Helper()
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
}

// Cont ends a Stop.
func (s *Server) Cont() {
	s.t.Helper()
	if err := s.cont(); err != nil {
		s.t.Fatal(err)
	}
}

// shared is the server of NewDatabase. It ends with the test process.
var shared = sync.OnceValues(func() (*instance, error) {
	inst, err := findInstallation()
	if err != nil {
		return nil, err
	}
	dir, err := testproc.ProcessDir()
	if err != nil {
		return nil, err
	}
	i := &instance{installation: inst, dir: dir, settings: forgetfulSettings}
	return i, i.create()
})

var databases struct {
	mu   sync.Mutex
	last int
}

// NewDatabase makes an empty database on a server that all tests of the process share, and returns its
// URL, which names a superuser. All of them together may hold 200 connections. May be called
// concurrently.
func NewDatabase(t testing.TB) string {
	t.Helper()
	i, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	// One at a time, so that many tests at once do not use up the connections.
	databases.mu.Lock()
	defer databases.mu.Unlock()
	databases.last++
	name := "test_" + strconv.Itoa(databases.last)
	// template0, since nobody can be connected to it, which would make this fail.
	if err := i.query("CREATE DATABASE "+name+" TEMPLATE template0", nil); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	return i.url(name)
}

// instance is a server with its data folder.
type instance struct {
	installation
	dir      string
	settings []string
	port     *testproc.Port
	process  *testproc.Process
	// stopped are the processes that stop has stopped besides the first one.
	stopped []int
}

// create makes the data folder and starts the server on a free port.
func (i *instance) create() error {
	if err := i.own(i.dir); err != nil {
		return err
	}
	if err := i.copyData(i.template, i.data()); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		port, err := testproc.ReservePort()
		if err != nil {
			return err
		}
		i.port = port
		if err = i.start(); err == nil || attempt == startAttempts {
			return err
		}
		if err := port.Release(); err != nil {
			return err
		}
	}
}

func (i *instance) data() string { return filepath.Join(i.dir, "data") }

func (i *instance) url(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.User(superuser), Host: i.port.Addr(), Path: database,
		RawQuery: "sslmode=disable",
	}).String()
}

// start starts the process and waits until it serves.
func (i *instance) start() error {
	args := []string{"-D", i.data(), "-p", strconv.Itoa(i.port.Number)}
	for _, setting := range append(commonSettings[:len(commonSettings):len(commonSettings)], i.settings...) {
		args = append(args, "-c", setting)
	}
	process, err := testproc.Start(testproc.Command{
		Path: filepath.Join(i.bin, "postgres"), Args: args, Dir: i.dir, Log: filepath.Join(i.dir, "postgres.log"),
		// Settings of the environment are for the clients of another server.
		Env:        []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"},
		Credential: i.credential,
		QuitSignal: syscall.SIGQUIT,
	})
	if err != nil {
		return err
	}
	i.process = process
	ready := testproc.Poll(readyTimeout, pollInterval, func() bool { return process.Exited() || i.serves() })
	if ready && !process.Exited() {
		return nil
	}
	if err := process.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("postgres did not get ready; it wrote:\n%s", testproc.Indent(process.LogTail(20)))
}

// serves reports whether this very server, and not another one on its port, takes commands.
func (i *instance) serves() bool {
	var data string
	return i.query("SHOW data_directory", &data) == nil && data == i.data()
}

// query runs a statement on a connection of its own. result is nil if there is none.
func (i *instance) query(statement string, result *string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, i.url(firstDatabase))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if result == nil {
		_, err = conn.Exec(ctx, statement)
		return err
	}
	return conn.QueryRow(ctx, statement).Scan(result)
}

// stop stops the first process before the others, which it therefore cannot replace.
func (i *instance) stop() error {
	if err := i.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := testproc.Children(i.process.PID())
	if err != nil {
		return err
	}
	i.stopped = children
	return i.signalChildren(syscall.SIGSTOP)
}

func (i *instance) cont() error {
	err := i.signalChildren(syscall.SIGCONT)
	i.stopped = nil
	return errors.Join(err, i.process.Signal(syscall.SIGCONT))
}

func (i *instance) kill() error {
	if i.process.Exited() {
		return nil
	}
	if err := i.stop(); err != nil {
		return err
	}
	err := i.signalChildren(syscall.SIGKILL)
	i.stopped = nil
	return errors.Join(err, i.process.Kill())
}

// signalChildren is for children of a stopped first process: it cannot wait for them, so their ids stay
// theirs.
func (i *instance) signalChildren(sig syscall.Signal) error {
	for _, pid := range i.stopped {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// close ends the server for good.
func (i *instance) close() error {
	var err error
	if i.process != nil {
		err = errors.Join(i.cont(), i.process.Quit())
	}
	if i.port != nil {
		err = errors.Join(err, i.port.Release())
	}
	return err
}

// Connect opens a connection, which ends with the test.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
