package checker

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/guard"
)

// A checker that keeps failing is left alone, asked one question after a while, and used again once it answers.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: down}
		h := start(t, s, nil)
		actor := 0
		check := func(expected string) {
			t.Helper()
			actor++
			want(t, h.check(guard.Question{Actor: fmt.Sprint(actor)}), expected)
		}
		for range breakerMinimum {
			h.wantMetrics(map[string]float64{"breaker_open": 0})
			check("unavailable")
		}
		h.wantMetrics(map[string]float64{"breaker_open": 1})
		for range 100 {
			check("unavailable")
		}
		h.wantMetrics(map[string]float64{"call_seconds": breakerMinimum, "decisions_total failed_closed": breakerMinimum + 100})

		time.Sleep(breakerOpenFor + time.Nanosecond)
		check("unavailable") // the probe
		check("unavailable")
		h.wantMetrics(map[string]float64{"breaker_open": 1, "call_seconds": breakerMinimum + 1})

		s.answer, s.latency = deny, 10*time.Millisecond
		time.Sleep(breakerOpenFor + time.Nanosecond)
		var group sync.WaitGroup
		group.Go(func() { check("denied ACCOUNT_TOO_NEW") }) // the probe
		synctest.Wait()
		want(t, h.check(question), "unavailable") // does not wait for it
		group.Wait()
		h.wantMetrics(map[string]float64{"breaker_open": 0, "call_seconds": breakerMinimum + 2})
		for range 100 {
			check("denied ACCOUNT_TOO_NEW")
		}
		log := h.log.String()
		for _, line := range []string{"keeps failing", "answers again"} {
			if strings.Count(log, line) != 1 {
				t.Errorf("the log has %q %d times: %s", line, strings.Count(log, line), log)
			}
		}
	})
}

// A checker that fails now and then stays in use.
func TestBreakerStaysClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		s := &script{answer: func(q guard.Question) (*guardv1.CheckResponse, error) {
			if n.Add(1)%5 < 2 {
				return nil, errDown
			}
			return allow(q)
		}}
		h := start(t, s, nil)
		for actor := range 500 {
			h.check(guard.Question{Actor: fmt.Sprint(actor)})
			time.Sleep(time.Millisecond)
		}
		h.wantMetrics(map[string]float64{"breaker_open": 0, "call_seconds": 500, "decisions_total allowed": 300})
	})
}

// However much fails, the log has a line a second, which says how many it stands for.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &script{answer: allow, latency: time.Minute}, func(c *Config) { c.MaxInFlight, c.Timeout = 1, time.Hour })
		go func() { _, _ = h.Check(t.Context(), question) }()
		synctest.Wait()
		for range 10 {
			for n := range 100 {
				want(t, h.check(guard.Question{Actor: fmt.Sprint(n)}), "unavailable")
			}
			time.Sleep(logInterval)
		}
		log := h.log.String()
		if n := strings.Count(log, "too many questions"); n != 10 || strings.Count(log, "suppressed_before=99") != 9 {
			t.Errorf("%d lines: %s", n, log)
		}
		if err := h.Close(); err != nil { // before the question would be answered
			t.Error(err)
		}
	})
}
