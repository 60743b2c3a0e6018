//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const variable = "PLUSONE_FAILPOINTS"

// action is what is to happen at a point.
type action struct {
	hits  atomic.Int64 // so far
	at    int64        // the hit at which it happens
	pause time.Duration
	kill  bool
}

// actions are by point, and complete before main begins.
var actions = mustParse(os.Getenv(variable))

func mustParse(text string) map[string][]*action {
	parsed := make(map[string][]*action)
	for _, name := range Points() {
		parsed[name] = nil
	}
	if text == "" {
		return parsed
	}
	for entry := range strings.SplitSeq(text, ",") {
		name, what, _ := strings.Cut(entry, "=")
		if !slices.Contains(Points(), name) {
			panic(fmt.Sprintf("%s: %q: there is no point %q", variable, entry, name))
		}
		a, err := parseAction(what)
		if err != nil {
			panic(fmt.Sprintf("%s: %q: %v; it must be kill@N or pause:DURATION@N", variable, entry, err))
		}
		parsed[name] = append(parsed[name], a)
	}
	return parsed
}

func parseAction(text string) (*action, error) {
	what, at, _ := strings.Cut(text, "@")
	n, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, fmt.Errorf("hits are counted from 1, not %d", n)
	}
	if what == "kill" {
		return &action{at: n, kill: true}, nil
	}
	pause, ok := strings.CutPrefix(what, "pause:")
	if !ok {
		return nil, fmt.Errorf("there is no action %q", what)
	}
	d, err := time.ParseDuration(pause)
	return &action{at: n, pause: d}, err
}

// Hit is where a point is.
func Hit(n Name) { hit(names[n]) }

// Before is the point before a step of the flush.
func Before(step string) { hit(before(step)) }

// After is the point after a step of the flush.
func After(step string) { hit(after(step)) }

func hit(name string) {
	all, ok := actions[name]
	if !ok {
		panic("there is no failpoint " + name)
	}
	for _, a := range all {
		if a.hits.Add(1) == a.at {
			a.happen(name)
		}
	}
}

func (a *action) happen(name string) {
	// Not through the logger, which a leaf does not have: a test that looks for it finds it in the output.
	fmt.Fprintf(os.Stderr, "failpoint %s reached\n", name)
	if !a.kill {
		<-time.After(a.pause)
		return
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // nothing more is done until the signal arrives
}
