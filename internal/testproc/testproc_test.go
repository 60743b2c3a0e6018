package testproc

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperEnv has the test binary play a test process that will be killed.
const helperEnv = "PLUSONE_TESTPROC_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) == "" {
		os.Exit(m.Run())
	}
	if err := helper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helper starts two processes, one of which hangs, says what they are, and waits to be killed.
func helper() error {
	dir, err := ProcessDir()
	if err != nil {
		return err
	}
	fmt.Println(dir)
	for range 2 {
		p, err := sleeper(dir)
		if err != nil {
			return err
		}
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		fmt.Println(p.PID())
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func sleeper(dir string) (*Process, error) {
	path, err := exec.LookPath("sleep")
	if err != nil {
		return nil, err
	}
	return Start(Command{Path: path, Args: []string{"1000"}, Log: filepath.Join(dir, "log"), QuitSignal: syscall.SIGTERM})
}

// runs reports whether a process exists and is not a zombie that nobody waited for.
func runs(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(string(out), "Z")
}

func TestProcessesEndWithTheTest(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, ready string
	var pids [2]int
	if _, err := fmt.Fscan(stdout, &dir, &pids[0], &pids[1], &ready); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if !runs(pid) {
			t.Errorf("process %d does not run", pid)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the helper was not killed")
	}
	for _, pid := range pids {
		if !Poll(20*time.Second, 10*time.Millisecond, func() bool { return !runs(pid) }) {
			t.Errorf("process %d outlived the test", pid)
		}
	}
	if !Poll(20*time.Second, 10*time.Millisecond, func() bool {
		_, err := os.Stat(filepath.Dir(dir))
		return os.IsNotExist(err)
	}) {
		t.Errorf("%s outlived the test", filepath.Dir(dir))
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	p, err := sleeper(TempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if p.Exited() || !runs(p.PID()) {
		t.Error("ended at once")
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.Quit(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the quit signal did not reach a stopped process: it took %v", took)
	}
	if !p.Exited() || runs(p.PID()) {
		t.Error("still there")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing an ended process: %v", err)
	}
}

func TestChildren(t *testing.T) {
	t.Parallel()
	dir := TempDir(t)
	p, err := Start(Command{Path: "/bin/sh", Args: []string{"-c", "sleep 1000 & echo $!; wait"}, Log: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	}()
	var want int
	if !Poll(10*time.Second, time.Millisecond, func() bool {
		want, err = strconv.Atoi(p.LogTail(1))
		return err == nil
	}) {
		t.Fatal(err)
	}
	got, err := Children(p.PID())
	if err != nil || len(got) != 1 || got[0] != want {
		t.Fatalf("children %v, want %d: %v", got, want, err)
	}
	if err := syscall.Kill(want, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestReservePort(t *testing.T) {
	t.Parallel()
	p, err := ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	if other, err := tryPort(p.Number); err == nil {
		t.Errorf("port %d was given twice", other.Number)
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := tryPort(p.Number)
	if err != nil {
		t.Fatalf("a released port is not free: %v", err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}
