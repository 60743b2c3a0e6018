package chaos_test

import (
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// A slow Redis makes each call slow, and no fewer of them: who waits shares the next script. One that hangs makes calls
// fail in time.
func TestSlowRedis(t *testing.T) {
	t.Parallel()
	const key = "views/slow"
	const callers = 200
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	link, url := netfault.StartURL(t, redis.URL())
	s := serve(t, plusonetest.Variant{}, shardedFlags(url, pgtest.NewDatabase(t))...)
	by := services(t, s.GRPCAddr, 2)
	freshCount(t, by[0], key)
	forgetPeak(t, s)

	link.SetLatency(200 * time.Millisecond)
	slow := gather(t, callers, key, plusonetest.Patience, by...)
	slow.until("each caller is served five times", func(ended [verdicts]int) bool { return ended[served] >= 5*callers })
	told := []tally{slow.wantServed()}
	t.Logf("slow: %v", told[0])
	changes, scripts := s.Metric("plusone_shard_batch_changes_sum"), s.Metric("plusone_shard_batch_changes_count")
	if changes < float64(told[0].sum()) || changes/scripts < callers/4 {
		t.Errorf("%v changes took %v scripts, and %d were under way at a time", changes, scripts, callers)
	}
	counted(t, by[0], key, told...)

	link.Heal()
	redis.Stop()
	hung := gather(t, callers, key, time.Second, by...)
	hung.until("calls of two seconds fail", func(ended [verdicts]int) bool {
		return ended[unavailable] > 0 && ended[unavailable]+ended[doubtful] >= 2*callers
	})
	redis.Cont()
	hung.until("calls are served again", func(ended [verdicts]int) bool { return ended[served] >= 5*callers })
	told = append(told, hung.leave())
	t.Logf("hung: %v", told[1])
	if got := told[1].ended[refused]; got > 0 {
		t.Errorf("%d calls were refused, which are no overload", got)
	}
	counted(t, by[0], key, told...)
	wantPeak(t, s, overloadPeak)
	s.Terminate()
}
