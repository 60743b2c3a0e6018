package reload

import "github.com/prometheus/client_golang/prometheus"

// Results of a reload.
const (
	resultOK    = "ok"
	resultError = "error"
)

// Metrics are those of all files, by their names. Nil counts nothing.
type Metrics struct {
	failing, lastSuccess *prometheus.GaugeVec
	reloads              *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them. It panics if the registry has them already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	labels := []string{"file"}
	m := &Metrics{
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_reload_failing", Help: "1 while a file is not in force as it is, because it cannot be used.",
		}, labels),
		lastSuccess: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_reload_last_success_timestamp_seconds", Help: "When what is in force was loaded.",
		}, labels),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_reloads_total", Help: "Changes of files, by what became of them.",
		}, []string{"file", "result"}),
	}
	r.MustRegister(m.failing, m.lastSuccess, m.reloads)
	return m
}

// Opened shows a file that was loaded for the first time. What is no file, such as an answer over HTTP, may be shown likewise.
func (m *Metrics) Opened(name string) {
	if m == nil {
		return
	}
	m.settled(name)
	m.lastSuccess.WithLabelValues(name).SetToCurrentTime()
	for _, result := range []string{resultOK, resultError} {
		m.reloads.WithLabelValues(name, result).Add(0)
	}
}

// settled notes that a file is in force.
func (m *Metrics) settled(name string) {
	if m != nil {
		m.failing.WithLabelValues(name).Set(0)
	}
}

// Succeeded counts a change that came into force.
func (m *Metrics) Succeeded(name string) {
	if m == nil {
		return
	}
	m.settled(name)
	m.lastSuccess.WithLabelValues(name).SetToCurrentTime()
	m.reloads.WithLabelValues(name, resultOK).Inc()
}

// Failed counts a change that cannot be used.
func (m *Metrics) Failed(name string) {
	if m == nil {
		return
	}
	m.failing.WithLabelValues(name).Set(1)
	m.reloads.WithLabelValues(name, resultError).Inc()
}
