package flush

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// directMetrics say how group commit is doing.
type directMetrics struct {
	groupChanges  prometheus.Histogram
	commitSeconds prometheus.Histogram
	commitErrors  *prometheus.CounterVec
	prunedClaims  prometheus.Counter
	queues        *groupcommit.Collector
}

// The kinds of queues, by what waits in them.
const (
	waitingChanges = "changes"
	waitingReads   = "reads"
	waitingLikes   = "likes"
)

func newDirectMetrics(registry prometheus.Registerer) (*directMetrics, error) {
	m := &directMetrics{
		groupChanges: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "plusone_direct_group_changes",
			Help:    "Changes per transaction of group commit.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8), // 1 to 16,384
		}),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "plusone_direct_commit_seconds",
			Help:    "Duration of a transaction of group commit, also of one that failed.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), // 0.5 ms to 8 s
		}),
		commitErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_direct_commit_errors_total",
			Help: "Transactions of group commit that failed, by reason; those that were repeated count each time.",
		}, []string{"reason"}),
		prunedClaims: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_direct_pruned_claims_total",
			Help: "Request ids and once-per claims forgotten after their time.",
		}),
		queues: groupcommit.NewCollector("plusone_direct", waitingChanges, waitingReads, waitingLikes),
	}
	for _, reason := range []string{"in_doubt", "unavailable", "full", "other"} {
		m.commitErrors.WithLabelValues(reason)
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.groupChanges, m.commitSeconds, m.commitErrors, m.prunedClaims, m.queues} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *directMetrics) countError(err error) {
	reason := "other"
	switch {
	case errors.Is(err, counter.ErrInDoubt):
		reason = "in_doubt"
	case errors.Is(err, counter.ErrUnavailable):
		reason = "unavailable"
	case errors.Is(err, counter.ErrFull):
		reason = "full"
	}
	m.commitErrors.WithLabelValues(reason).Inc()
}
