// Package testproc runs the server processes that tests need. Whatever it started ends with the test
// process, even if that is killed, and all its files are removed.
//
// It leaves no goroutines behind, so tests that use it can look for leaks.
package testproc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pollInterval is how often a process is asked whether it has ended.
const pollInterval = 2 * time.Millisecond

// Command says what to run.
type Command struct {
	// Path of the executable.
	Path string
	// Args without the name of the program.
	Args []string
	// Env in the form of os.Environ; nil is the environment of the test.
	Env []string
	// Dir is the working directory; "" is that of the test.
	Dir string
	// Log is the path of the file to which output and errors are appended.
	Log string
	// Credential is the user to run as; nil is that of the test.
	Credential *syscall.Credential
	// QuitSignal ends the process at once but cleanly; 0 is SIGKILL.
	QuitSignal syscall.Signal
}

// Process is a started child process. Its methods may be called concurrently, and after its end.
type Process struct {
	pid  int
	log  string
	quit syscall.Signal

	mu sync.Mutex
	// reaped is set once the process was waited for: its pid may then belong to somebody else.
	reaped bool
}

// Start starts a process in a process group of its own, so that an interrupt from the terminal reaches
// the test alone.
func Start(c Command) (*Process, error) {
	g, err := theGuard()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	child, err := os.StartProcess(c.Path, append([]string{c.Path}, c.Args...), &os.ProcAttr{
		Dir:   c.Dir,
		Env:   env,
		Files: []*os.File{null, log, log},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential},
	})
	if err != nil {
		return nil, err
	}
	p := &Process{pid: child.Pid, log: c.Log, quit: c.QuitSignal}
	if p.quit == 0 {
		p.quit = syscall.SIGKILL
	}
	// From here on the process is handled by its pid, which is ours until it is waited for.
	if err := errors.Join(child.Release(), g.add(p.pid, p.quit)); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.pid }

// Signal sends a signal; a process that has ended is left in peace.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	return syscall.Kill(p.pid, sig)
}

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true
	}
	got, err := syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
	if got != p.pid && !errors.Is(err, syscall.ECHILD) {
		return false
	}
	p.reaped = true
	if g, err := theGuard(); err == nil {
		g.remove(p.pid)
	}
	return true
}

// Wait waits until the process has ended, and reports whether it did in time.
func (p *Process) Wait(timeout time.Duration) bool {
	return Poll(timeout, pollInterval, p.Exited)
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	if !p.Wait(10 * time.Second) {
		return errors.Join(err, fmt.Errorf("process %d survived SIGKILL", p.pid))
	}
	return err
}

// Quit ends the process with its quit signal, even if it was stopped, and with SIGKILL if that does not
// help within 10 s.
func (p *Process) Quit() error {
	if err := errors.Join(p.Signal(p.quit), p.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if p.Wait(10 * time.Second) {
		return nil
	}
	return p.Kill()
}

// LogTail returns the last lines that the process wrote.
func (p *Process) LogTail(lines int) string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// TempDir makes a folder that other users may enter. It is removed when the test ends, and in any case
// with the test process.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := ProcessDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A child of a server that was killed may still write for a moment.
		if !Poll(5*time.Second, pollInterval, func() bool {
			err = os.RemoveAll(dir)
			return err == nil
		}) {
			t.Error(err)
		}
	})
	return dir
}

// ProcessDir makes a folder that other users may enter and that is removed with the test process.
func ProcessDir() (string, error) {
	g, err := theGuard()
	if err != nil {
		return "", fmt.Errorf("start the guard: %w", err)
	}
	dir, err := os.MkdirTemp(g.root, "")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// Poll asks every interval until the answer is true, and reports whether that was in time. It asks at
// least once.
func Poll(timeout, interval time.Duration, done func() bool) bool {
	deadline := time.Now().Add(timeout)
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(interval) //nolint:forbidigo // other processes cannot signal what is polled here
	}
	return true
}

// Indent sets text off from the message around it.
func Indent(text string) string {
	return "\t" + strings.ReplaceAll(text, "\n", "\n\t")
}
