package server

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/identity"
)

// latencyBuckets are for calls that take from a cache hit to the request timeout, in seconds.
var latencyBuckets = [numLatencies]float64{
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10,
}

const numLatencies = 16

// metrics are what the server counts. None is labelled by key or actor.
type metrics struct {
	calls *calls

	hits, misses, stale, refreshes, evictions, loadErrors prometheus.Counter

	loadSeconds    prometheus.Histogram
	shed, invalid  *prometheus.CounterVec
	refused        *prometheus.CounterVec // by who calls
	logsSuppressed prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		calls:      newCalls(),
		hits:       counter("plusone_cache_hits_total", "Keys that were read from the cache."),
		misses:     counter("plusone_cache_misses_total", "Keys that were read and not fresh enough in the cache."),
		stale:      counter("plusone_cache_stale_total", "Keys answered with a last known value because the store could not answer."),
		refreshes:  counter("plusone_cache_refreshes_total", "Keys fetched ahead of need."),
		evictions:  counter("plusone_cache_evictions_total", "Keys that the cache dropped for want of room."),
		loadErrors: counter("plusone_cache_load_errors_total", "Keys that the store could not read."),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_cache_load_seconds", Help: "Time of a read from the store.", Buckets: latencyBuckets[:],
		}),
		shed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_server_shed_total", Help: "Requests refused because too much was in flight, by limit.",
		}, []string{"limit"}),
		invalid: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_server_invalid_total", Help: "Requests that break the contract, by the first field that does.",
		}, []string{"field"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_auth_refused_total", Help: "Calls refused because of who makes them, by reason.",
		}, []string{"reason"}),
		logsSuppressed: counter("plusone_server_logs_suppressed_total", "Log lines of failed calls left out to bound the log."),
	}
	for _, refusal := range identity.Refusals() {
		m.refused.WithLabelValues(string(refusal))
	}
	for _, denied := range []string{deniedScope, deniedNamespace, deniedActor} {
		m.refused.WithLabelValues(denied)
	}
	return m
}

// register adds the metrics to a registry, with gauges that read the cache and the admission.
func (m *metrics) register(registry *prometheus.Registry, cache *countCache, in *admission) error {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.calls, m.hits, m.misses, m.stale, m.refreshes, m.evictions, m.loadErrors, m.loadSeconds,
		m.shed, m.invalid, m.refused, m.logsSuppressed,
		gauge("plusone_cache_entries", "Keys in the cache.",
			func() float64 { return float64(cache.entries.EstimatedSize()) }),
		gauge("plusone_cache_size_bytes", "Approximate memory of the cache.",
			func() float64 { return float64(cache.entries.WeightedSize()) }),
		gauge("plusone_server_in_flight_requests", "Requests that are worked on.",
			func() float64 { return float64(in.requests.Load()) }),
		gauge("plusone_server_in_flight_items", "Batch entries, keys and listed likes of the requests that are worked on.",
			func() float64 { return float64(in.items.Load()) }),
	} {
		errs = append(errs, registry.Register(c))
	}
	return errors.Join(errs...)
}

// refuse returns the error of a request with violations, and counts it.
func (m *metrics) refuse(v *violations) error {
	err := v.err()
	if err != nil {
		m.invalid.WithLabelValues(v.kind).Inc()
	}
	return err
}
