package chaos_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// fewInFlight is a limit that is soon met.
	fewInFlight = 20
	// slowStore is how long a store takes at least for a group of changes, of which there is one under way at
	// a time. So no more than fewInFlight calls are served in that time.
	slowStore = 200 * time.Millisecond
	// shortTimeout is a --request-timeout: many times what a call takes that was let in.
	shortTimeout = 4 * time.Second
	// overloadPeak is the most memory that a server may take that is offered more than it serves, with at most
	// fewInFlight calls of one change in flight. An idle one takes about half.
	overloadPeak = 96 * mebibyte
)

// Offered ten times what it can serve, and then twice that, a server refuses most, at once, and serves the rest in
// time, with no more memory. It recovers with the next call.
func TestOverload(t *testing.T) {
	t.Parallel()
	limits := []string{fmt.Sprint("--max-in-flight=", fewInFlight), fmt.Sprint("--request-timeout=", shortTimeout)}
	for name, deploy := range map[string]func(*testing.T) (*plusonetest.Instance, func()){
		"sharded": func(t *testing.T) (*plusonetest.Instance, func()) {
			redis, url := netfault.StartURL(t, redistest.Start(t, redistest.AppendFsyncAlways()).URL())
			s := serve(t, plusonetest.Variant{}, append(shardedFlags(url, pgtest.NewDatabase(t)), limits...)...)
			return s, func() { redis.SetLatency(slowStore / 2) }
		},
		"embedded": func(t *testing.T) (*plusonetest.Instance, func()) {
			file := filepath.Join(testproc.TempDir(t), "plusone.db")
			s := serve(t, failpoints, append([]string{"--data=" + file}, limits...)...)
			return s, func() { slowCommits(s, slowStore) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, slow := deploy(t)
			slow()
			callers := services(t, s.GRPCAddr, 4)
			goroutines := s.Metric("go_goroutines")
			tenfold := overload(t, s, "views/overload", 10*fewInFlight, callers)
			twentyfold := overload(t, s, "views/overload", 20*fewInFlight, callers)
			if got := s.Metric("plusone_server_shed_total"); int(got) != tenfold.ended[refused]+twentyfold.ended[refused] {
				t.Errorf("%v refusals are metered", got)
			}
			after := tally{}
			after.ended[served] = 2 // the first call after each
			counted(t, callers[0], "views/overload", tenfold, twentyfold, after)
			waitUntil(t, "as few goroutines as before", func() bool { return s.Metric("go_goroutines") < goroutines+10 })
		})
	}
}

// overload offers a server at least ten times what it serves, until it has served some groups.
func overload(t *testing.T, s *plusonetest.Instance, key string, callers int, by []plusonev1.CounterServiceClient) tally {
	t.Helper()
	forgetPeak(t, s)
	crowd := gather(t, callers, key, plusonetest.Patience, by...)
	crowd.until("ten times as much is offered as served", func(ended [verdicts]int) bool {
		return ended[served] >= 3*fewInFlight && ended[refused] >= 9*ended[served]
	})
	got := crowd.leave()
	// Every call has been answered, so nothing is left that could refuse the next one.
	if err := increment(by[0], key, shortTimeout); err != nil {
		t.Errorf("the first call after an overload: %v", err)
	}
	t.Logf("%d callers: %v", callers, got)
	if got.sum() != got.ended[served]+got.ended[refused] {
		t.Errorf("not all were served or refused: %v", got)
	}
	if slowest := got.quantile(served, 1); slowest > shortTimeout {
		t.Errorf("a call was served after %v, and the request timeout is %v", slowest, shortTimeout)
	}
	if served, refused := got.quantile(served, 0.5), got.quantile(refused, 0.5); refused > served {
		t.Errorf("half of the refusals took more than %v, and half of what was served less than %v", refused, served)
	}
	wantPeak(t, s, overloadPeak)
	return got
}

// slowCommits has each commit of an embedded server take d, for as long as any test lasts.
func slowCommits(s *plusonetest.Instance, d time.Duration) {
	var points []string
	for n := range 1_000 {
		points = append(points, fmt.Sprintf("direct.commit.before=pause:%v@%d", d, n+1))
	}
	s.SetEnv("PLUSONE_FAILPOINTS=" + strings.Join(points, ","))
	s.Restart()
}
