package chaos_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// In direct mode a slow Postgres makes calls slow, and one that does not answer makes them fail in time. Nothing needs
// a restart afterwards.
func TestSlowPostgres(t *testing.T) {
	t.Parallel()
	const key = "views/slow"
	postgres, url := netfault.StartURL(t, pgtest.NewDatabase(t))
	s := serve(t, plusonetest.Variant{}, "--postgres-url="+url, "--postgres-max-conns=6", "--max-in-flight=100")
	by := services(t, s.GRPCAddr, 2)
	forgetPeak(t, s)

	// A commit takes several of these round trips, and groups grow accordingly.
	postgres.SetLatency(25 * time.Millisecond)
	slow := gather(t, 50, key, plusonetest.Patience, by...)
	slow.until("200 calls are served", func(ended [verdicts]int) bool { return ended[served] >= 200 })
	told := []tally{slow.wantServed()}
	t.Logf("slow: %v", told[0])

	// More callers than may be in flight, who wait for a second.
	postgres.SetLatency(0)
	postgres.Drop(netfault.ToClient, true)
	silent := gather(t, 200, key, time.Second, by...)
	silent.until("calls fail in all ways", func(ended [verdicts]int) bool {
		return ended[unavailable]+ended[doubtful] >= 300 && ended[unavailable] > 0 && ended[refused] > 0
	})
	postgres.Heal()
	waitUntil(t, "calls are served again", func() bool {
		v, _, ok := judge(increment(by[0], "views/other", time.Second))
		return ok && v == served
	})
	told = append(told, silent.leave())
	t.Logf("silent: %v", told[1])

	again := gather(t, 50, key, plusonetest.Patience, by...)
	again.until("200 calls are served", func(ended [verdicts]int) bool { return ended[served] >= 200 })
	told = append(told, again.wantServed())
	counted(t, by[0], key, told...)
	wantPeak(t, s, overloadPeak)
	s.Terminate()
}

// In sharded mode nobody notices that Postgres hangs: changes and reads of known keys go on. What has piled up is
// drained afterwards.
func TestPostgresHangs(t *testing.T) {
	t.Parallel()
	keys := []string{"views/hang/a", "views/hang/b"}
	postgres := pgtest.Start(t)
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	s := serve(t, plusonetest.Variant{}, shardedFlags(redis.URL(), postgres.URL)...)
	by := services(t, s.GRPCAddr, 2)
	for _, key := range keys {
		freshCount(t, by[0], key) // from now on it is known
	}
	forgetPeak(t, s)

	told := map[string][]tally{}
	phase := func(name string, enough func() bool) {
		t.Helper()
		var crowds []*crowd
		for _, key := range keys {
			crowds = append(crowds, gather(t, 10, key, plusonetest.Patience, by...))
		}
		for _, c := range crowds {
			c.until("200 calls are served", func(ended [verdicts]int) bool { return ended[served] >= 200 && enough() })
		}
		for _, c := range crowds {
			got := c.wantServed()
			told[c.key] = append(told[c.key], got)
			t.Logf("%s, %s: %v", name, c.key, got)
			counted(t, by[0], c.key, told[c.key]...)
		}
	}
	phase("healthy", func() bool { return true })
	postgres.Stop()
	phase("hanging", func() bool { return pending(t, redis) >= 10 }) // some for each key
	postgres.Cont()
	phase("healthy again", func() bool { return true })

	for _, key := range keys {
		want := freshCount(t, by[0], key)
		waitUntil(t, "all is drained", func() bool { return ledgerTotal(t, postgres.URL, key) >= want })
		if got := ledgerTotal(t, postgres.URL, key); got != want {
			t.Errorf("the ledger has %d of %s, want %d", got, key, want)
		}
		counted(t, by[0], key, told[key]...)
	}
	if got := s.Metric("plusone_flush_rollbacks_total"); got != 0 {
		t.Errorf("%v rollbacks are metered", got)
	}
	wantPeak(t, s, overloadPeak)
	s.Terminate()
}

// pending is how many windows Redis holds.
func pending(t testing.TB, redis *redistest.Server) int {
	t.Helper()
	n, err := strconv.Atoi(redis.Do("EVAL", "return #redis.call('KEYS', 'plusone:*:w:*')", "0"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
