package groupcommit

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Queues are the queues of a store, by what waits in them.
type Queues map[string][]interface{ Stats() Stats }

// Collector shows the queues of a store as metrics: what waits in all of one kind, how full the fullest of them is, and
// how much they refused. It may be registered before there are queues, and shows zeros then.
type Collector struct {
	waiting, fill, refused *prometheus.Desc
	kinds                  []string
	queues                 atomic.Pointer[Queues]
}

// NewCollector makes a collector of queues of these kinds. The names of its metrics begin with prefix.
func NewCollector(prefix string, kinds ...string) *Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, []string{"queue"}, nil)
	}
	return &Collector{
		waiting: desc("_queue_requests", "Requests that wait for their batch."),
		fill:    desc("_queue_fill_ratio", "What waits in the fullest lane as a part of what may, beyond which requests are refused."),
		refused: desc("_queue_refused_total", "Requests refused because too much waited."),
		kinds:   kinds,
	}
}

// Show shows these queues from now on.
func (c *Collector) Show(queues Queues) { c.queues.Store(&queues) }

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.waiting, c.fill, c.refused} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	var queues Queues
	if shown := c.queues.Load(); shown != nil {
		queues = *shown
	}
	for _, kind := range c.kinds {
		var sum Stats
		for _, queue := range queues[kind] {
			s := queue.Stats()
			sum.Waiting += s.Waiting
			sum.Fill = max(sum.Fill, s.Fill)
			sum.Refused += s.Refused
		}
		metrics <- prometheus.MustNewConstMetric(c.waiting, prometheus.GaugeValue, float64(sum.Waiting), kind)
		metrics <- prometheus.MustNewConstMetric(c.fill, prometheus.GaugeValue, sum.Fill, kind)
		metrics <- prometheus.MustNewConstMetric(c.refused, prometheus.CounterValue, float64(sum.Refused), kind)
	}
}
