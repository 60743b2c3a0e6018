package testproc

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
)

// guardScript outlives the test process. It learns of its end, however it came, by the end of its
// input; then it ends what is still registered and removes the root folder. It ends servers first by
// their quit signal, because PostgreSQL leaves a shared memory segment behind when it is killed, and
// wakes those that a test had stopped. PostgreSQL takes up to 5 s for backends that do not answer.
const guardScript = `
trap '' HUP INT TERM QUIT
lives() {
	case $(ps -o stat= -p "$1") in '' | Z*) return 1 ;; esac
}
while read -r op pid sig; do
	rest=
	for entry in $entries; do
		[ "${entry%%:*}" = "$pid" ] || rest="$rest $entry"
	done
	entries=$rest
	[ "$op" = add ] && entries="$entries $pid:$sig"
done
for entry in $entries; do
	kill -"${entry##*:}" "${entry%%:*}"
	kill -CONT "${entry%%:*}"
done
for entry in $entries; do
	n=0
	while lives "${entry%%:*}" && [ $n -lt 80 ]; do
		sleep 0.1
		n=$((n + 1))
	done
	kill -KILL "${entry%%:*}"
done
n=0
until rm -rf "$1" || [ $n -eq 20 ]; do
	sleep 0.1
	n=$((n + 1))
done
`

// guard ends the children of a test process after it.
type guard struct {
	// root is the folder of all that the test process writes.
	root string

	mu    sync.Mutex
	input *os.File
}

// theGuard is the guard of this test process, started when it is first needed.
var theGuard = sync.OnceValues(startGuard)

func startGuard() (_ *guard, err error) {
	root, err := os.MkdirTemp("", "plusone-test-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(root))
		}
	}()
	if err := os.Chmod(root, 0o755); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// The write end is closed on exec, so no other child can keep the guard waiting.
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	// Its output must not be that of the test, for which go test waits.
	child, err := os.StartProcess("/bin/sh", []string{"sh", "-c", guardScript, "plusone-test-guard", root}, &os.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []*os.File{read, null, null},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return &guard{root: root, input: write}, child.Release()
}

// add has a process ended with the test process.
func (g *guard) add(pid int, quit syscall.Signal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := fmt.Fprintf(g.input, "add %d %d\n", pid, quit)
	return err
}

// remove is for a process that has ended. The guard being gone is noticed at the next add.
func (g *guard) remove(pid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, _ = fmt.Fprintf(g.input, "remove %d\n", pid)
}
