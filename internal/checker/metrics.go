package checker

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// metrics are what a client counts.
type metrics struct {
	decisions *prometheus.CounterVec

	allowed, denied, failedOpen, failedClosed, hits prometheus.Counter

	callSeconds prometheus.Histogram
}

func newMetrics() *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_guard_decisions_total",
			Help: "Changes that the guard decided about, by decision. failed_open and failed_closed are without the checker.",
		}, []string{"decision"}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_guard_cache_hits_total", Help: "Decisions by an answer that was kept.",
		}),
		callSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_guard_call_seconds", Help: "Time of questions to the checker, failed ones included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	m.allowed, m.denied = m.decisions.WithLabelValues("allowed"), m.decisions.WithLabelValues("denied")
	m.failedOpen, m.failedClosed = m.decisions.WithLabelValues("failed_open"), m.decisions.WithLabelValues("failed_closed")
	return m
}

func (m *metrics) register(registry prometheus.Registerer, state func() gobreaker.State) error {
	breakerOpen := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plusone_guard_breaker_open",
		Help: "1 while the checker is not asked because it kept failing, until it has answered again.",
	}, func() float64 {
		if state() == gobreaker.StateClosed {
			return 0
		}
		return 1
	})
	var errs []error
	for _, c := range []prometheus.Collector{m.decisions, m.hits, m.callSeconds, breakerOpen} {
		errs = append(errs, registry.Register(c))
	}
	return errors.Join(errs...)
}
