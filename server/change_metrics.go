package server

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/internal/counter"
)

// changeMetrics count changes by what became of them. Requests that break the contract, or are refused before the store
// is asked, are none.
type changeMetrics struct {
	total *prometheus.CounterVec
	// counted are by counter.Outcome, so that a change costs no look-up.
	counted [counter.AlreadyCounted + 1]prometheus.Counter
}

// outcomeNames are those of metrics and traces.
var outcomeNames = map[counter.Outcome]string{
	counter.Applied:        "applied",
	counter.Duplicate:      "duplicate",
	counter.AlreadyCounted: "already_counted",
}

// refusals are the outcomes of changes that were not acknowledged.
var refusals = []struct {
	status  *status.Status
	outcome string
}{
	{statusReused, "request_id_reused"},
	{statusExpired, "request_id_expired"},
	{statusEarly, "request_id_early"},
	{statusOverflow, "overflow"},
	{statusOverloaded, "overloaded"},
	{statusFull, "full"},
	{statusUnavailable, "unavailable"},
	{statusUnknown, "in_doubt"},
	{statusUnknownForGood, "in_doubt"},
	{statusUnknownLike, "in_doubt"},
	{statusCancelled, "cancelled"},
	{statusDeadline, "deadline_exceeded"},
	{statusInternal, "internal"},
}

func newChangeMetrics() *changeMetrics {
	m := &changeMetrics{total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "plusone_server_changes_total", Help: "Changes, by what became of them.",
	}, []string{"outcome"})}
	for outcome, name := range outcomeNames {
		m.counted[outcome] = m.total.WithLabelValues(name)
	}
	for _, r := range refusals {
		m.total.WithLabelValues(r.outcome)
	}
	return m
}

// acknowledged counts a change that was.
func (m *changeMetrics) acknowledged(o counter.Outcome) {
	if int(o) < len(m.counted) && m.counted[o] != nil {
		m.counted[o].Inc()
	}
}

// refused counts a change that ended with the status.
func (m *changeMetrics) refused(st *status.Status) {
	for _, r := range refusals {
		if r.status == st {
			m.total.WithLabelValues(r.outcome).Inc()
			return
		}
	}
}
