package flush

import (
	"github.com/prometheus/client_golang/prometheus"
)

// The states of a connection.
const (
	connInUse = "in_use"
	connIdle  = "idle"
	connLocks = "flush_locks"
)

// poolMetrics show the connections of a Postgres when they are asked for.
type poolMetrics struct {
	ledger                         *Postgres
	conns, limit, waits, waitTimes *prometheus.Desc
}

// Metrics are those of the connections. They may be registered once.
func (p *Postgres) Metrics() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("plusone_postgres_"+name, help, labels, nil)
	}
	return &poolMetrics{
		ledger: p,
		conns: desc("connections", "Connections to Postgres: in use, idle, and held for the locks of shards that are drained.",
			"state"),
		limit:     desc("max_connections", "Most connections to Postgres, besides those for locks."),
		waits:     desc("waits_total", "How often a connection had to be waited for, because all were in use or one had to be made."),
		waitTimes: desc("wait_seconds_total", "Time spent on that, added up over those who waited."),
	}
}

// Describe implements prometheus.Collector.
func (m *poolMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.conns, m.limit, m.waits, m.waitTimes} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (m *poolMetrics) Collect(metrics chan<- prometheus.Metric) {
	s := m.ledger.pool.Stat()
	gauge := func(desc *prometheus.Desc, n int32, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(m.conns, s.AcquiredConns()+s.ConstructingConns(), connInUse)
	gauge(m.conns, s.IdleConns(), connIdle)
	gauge(m.conns, m.ledger.locks.Stat().TotalConns(), connLocks)
	gauge(m.limit, s.MaxConns())
	metrics <- prometheus.MustNewConstMetric(m.waits, prometheus.CounterValue, float64(s.EmptyAcquireCount()))
	metrics <- prometheus.MustNewConstMetric(m.waitTimes, prometheus.CounterValue, s.EmptyAcquireWaitTime().Seconds())
}
