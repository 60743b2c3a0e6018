package server

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/identity"
)

// latencyBuckets are for calls that take from a cache hit to the request timeout, in seconds. They are close where the
// rare slow ones of a healthy server are, from 1 to 100 ms, so that a quantile like p99.9 is off by a third at most
// there.
var latencyBuckets = [numLatencies]float64{
	.0001, .00025, .0005, .00075, .001, .00125, .0016, .002, .0025, .003, .004, .005, .0065, .008, .01, .0125, .016, .02, .025, .03, .04, .05,
	.065, .08, .1, .15, .25, .5, 1, 2.5, 5, 10,
}

const numLatencies = 32

// metrics are what the server counts. None is labelled by key or actor.
type metrics struct {
	calls *calls

	hits, misses, stale, refreshes, evictions, loadErrors prometheus.Counter

	loadSeconds    prometheus.Histogram
	shed, invalid  *prometheus.CounterVec
	refused        *prometheus.CounterVec // by who calls
	logsSuppressed prometheus.Counter

	changes *changeMetrics
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
		logsSuppressed: newLogsSuppressed(),
		changes:        newChangeMetrics(),
	}
	for _, refusal := range identity.Refusals() {
		m.refused.WithLabelValues(string(refusal))
	}
	for _, denied := range []string{deniedScope, deniedNamespace, deniedActor} {
		m.refused.WithLabelValues(denied)
	}
	for _, limit := range []string{limitRequests, limitItems, limitArrivals, limitStreams} {
		m.shed.WithLabelValues(limit)
	}
	for _, field := range checkedFields {
		m.invalid.WithLabelValues(field)
	}
	return m
}

// newLogsSuppressed counts the lines that a lineLimit leaves out.
func newLogsSuppressed() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: "plusone_server_logs_suppressed_total", Help: "Log lines of failed calls and HTTP connections left out to bound the log.",
	})
}

// register adds the metrics to a registry, with gauges that read the cache and the admission.
func (m *metrics) register(registry *prometheus.Registry, cache *countCache, in *admission) error {
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.calls, m.hits, m.misses, m.stale, m.refreshes, m.evictions, m.loadErrors, m.loadSeconds,
		m.shed, m.invalid, m.refused, m.logsSuppressed, m.changes.total,
		gauge("plusone_cache_entries", "Keys in the cache.",
			func() float64 { return float64(cache.entries.EstimatedSize()) }),
		gauge("plusone_cache_size_bytes", "Approximate memory of the cache.",
			func() float64 { return float64(cache.entries.WeightedSize()) }),
		gauge("plusone_server_in_flight_requests", "Requests that are worked on.",
			func() float64 { return float64(in.requests.Load()) }),
		gauge("plusone_server_in_flight_items", "Batch entries, keys and listed likes of the requests that are worked on.",
			func() float64 { return float64(in.items.Load()) }),
		limitGauge(limitRequests, func() float64 { return float64(in.requests.Load()) / float64(in.maxRequests) }),
		limitGauge(limitItems, func() float64 { return float64(in.items.Load()) / float64(in.maxItems) }),
	} {
		errs = append(errs, registry.Register(c))
	}
	return errors.Join(errs...)
}

// checkedFields are those of requests of which a check may find something wrong.
var checkedFields = []string{
	"actor", "delta", "entries", "key", "keys", "likes", "max_age", "min_as_of", "once_per", "page_size", "page_token", "request_id", "totals",
}

// The limits of what is in flight.
const (
	limitRequests = "requests"
	limitItems    = "items"
	limitArrivals = "arrivals"
	limitStreams  = "streams"
)

// limitGauge is what part of a limit is in use.
func limitGauge(limit string, read func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plusone_server_in_flight_ratio", Help: "What is in flight as a part of its limit, at which requests are refused.",
		ConstLabels: prometheus.Labels{"limit": limit},
	}, read)
}

// refuse returns the error of a request with violations, and counts it.
func (m *metrics) refuse(v *violations) error {
	err := v.err()
	if err != nil {
		m.invalid.WithLabelValues(v.kind).Inc()
	}
	return err
}
