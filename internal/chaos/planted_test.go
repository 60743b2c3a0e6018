package chaos_test

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/plusonetest"
)

var bugsFlag = flag.Bool("chaos.bugs", false, "plant every bug; else one for each mode")

// plantedFaults is how many faults a planted bug gets to show. Every kind is among them.
const plantedFaults = 60

// A suite that finds nothing proves nothing: of each planted bug it must find that a promise is broken.
func TestPlantedBugs(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, bug := range plantedBugs {
		mode := bug.modes[0]
		if seen[mode] && !*bugsFlag {
			continue
		}
		seen[mode] = true
		t.Run(bug.name, func(t *testing.T) {
			t.Parallel()
			variant := failpoints
			variant.Replace = bug.replace
			binary, err := plusonetest.Build(variant)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			found := bug.find(t, binary)
			if found == nil {
				t.Errorf("not found by %d faults: %s", plantedFaults, bug.what)
				return
			}
			t.Logf("found after %v: %v", time.Since(began).Round(time.Second), found)
			planted.add(bug.name, found)
		})
	}
}

// find runs the suite on a program with a bug until it finds something.
func (b plantedBug) find(t *testing.T, binary string) error {
	name := b.modes[0]
	if b.scenario != "" {
		name = b.scenario
	}
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	s := scenarios[i]
	trial := &trial{TB: t}
	done := make(chan error, 1)
	go func() {
		defer func() { done <- trial.failure() }() // also after a Goexit
		d := s.start(trial, binary)
		defer func() {
			if !d.load.ended() {
				d.load.stop()
			}
		}()
		for _, v := range d.run(s.faults, plantedFaults, 0) {
			trial.Errorf("promise %d: %s", v.Promise, v.Text)
		}
		if d.load.unexpected != nil {
			trial.Errorf("%v", d.load.unexpected)
		}
	}()
	return <-done
}

// trial is a test that is expected to fail: it keeps the first failure.
type trial struct {
	testing.TB
	mu    sync.Mutex
	first error
}

func (t *trial) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first
}

func (t *trial) fail(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first == nil {
		t.first = errors.New(text)
	}
}

func (t *trial) Error(args ...any)                 { t.fail(fmt.Sprint(args...)) }
func (t *trial) Errorf(format string, args ...any) { t.fail(fmt.Sprintf(format, args...)) }
func (t *trial) Fail()                             { t.fail("failed") }
func (t *trial) FailNow()                          { t.fail("failed"); runtime.Goexit() }
func (t *trial) Fatal(args ...any)                 { t.fail(fmt.Sprint(args...)); runtime.Goexit() }
func (t *trial) Fatalf(format string, args ...any) {
	t.fail(fmt.Sprintf(format, args...))
	runtime.Goexit()
}

// planted is what was found of each planted bug, printed at the end of the run.
var planted findings

type findings struct {
	mu   sync.Mutex
	rows [][2]string
}

func (f *findings) add(bug string, found error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = append(f.rows, [2]string{bug, found.Error()})
}

func (f *findings) print() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.rows) == 0 {
		return
	}
	fmt.Printf("\n| planted bug | found by |\n|---|---|\n")
	for _, row := range f.rows {
		fmt.Printf("| %s | %s |\n", row[0], row[1])
	}
}
