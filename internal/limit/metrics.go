package limit

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a limiter.
type Metrics struct {
	seconds    prometheus.Histogram
	requests   prometheus.Histogram
	errors     prometheus.Counter
	knownEmpty prometheus.Counter
	evicted    prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_limit_script_seconds", Help: "Time to ask Redis for tokens, for all that wait together.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16), // 50 µs to 1.6 s
		}),
		requests: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_limit_script_requests", Help: "Requests for tokens that were combined into one script.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_limit_script_errors_total", Help: "Scripts for tokens that failed or whose answer was lost.",
		}),
		knownEmpty: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_limit_known_empty_total", Help: "Requests refused without asking Redis, by what it said before.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_limit_evicted_total", Help: "Token buckets forgotten before they were full, for want of memory.",
		}),
	}
	reg.MustRegister(m.seconds, m.requests, m.errors, m.knownEmpty, m.evicted)
	return m
}
