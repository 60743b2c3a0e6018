package tracing

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Why spans are lost.
const (
	lostQueueFull  = "queue_full"
	lostSendFailed = "send_failed"
)

// logInterval is how often a collector that does not answer is logged.
const logInterval = time.Minute

type metrics struct {
	spans   prometheus.Counter
	lost    *prometheus.CounterVec
	waiting prometheus.GaugeFunc
	// queued counts the spans that wait or are being sent.
	queued atomic.Int64
}

func newMetrics() *metrics {
	m := &metrics{
		spans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_trace_spans_total", Help: "Spans recorded.",
		}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_trace_spans_lost_total", Help: "Spans that were not sent, by reason.",
		}, []string{"reason"}),
	}
	m.waiting = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plusone_trace_queue_spans", Help: "Spans that wait to be sent, or are being sent.",
	}, func() float64 { return float64(m.queued.Load()) })
	for _, reason := range []string{lostQueueFull, lostSendFailed} {
		m.lost.WithLabelValues(reason)
	}
	return m
}

func (m *metrics) register(registry prometheus.Registerer) error {
	return errors.Join(registry.Register(m.spans), registry.Register(m.lost), registry.Register(m.waiting))
}

// boundedProcessor counts spans, and those that find no room in the queue, which the processor behind it would lose in
// silence.
type boundedProcessor struct {
	sdktrace.SpanProcessor
	metrics *metrics
}

func (p *boundedProcessor) OnEnd(span sdktrace.ReadOnlySpan) {
	p.metrics.spans.Inc()
	if p.metrics.queued.Add(1) > queueSize {
		p.metrics.queued.Add(-1)
		p.metrics.lost.WithLabelValues(lostQueueFull).Inc()
		return
	}
	p.SpanProcessor.OnEnd(span)
}

// countedExporter counts what could not be sent, and says so now and then. Its calls come one at a time.
type countedExporter struct {
	sdktrace.SpanExporter
	metrics *metrics
	logger  *slog.Logger
	logged  time.Time
}

// ExportSpans never fails, since all that can be done about a failure is done here.
func (e *countedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.metrics.queued.Add(-int64(len(spans)))
	if err == nil {
		e.logged = time.Time{}
		return nil
	}
	e.metrics.lost.WithLabelValues(lostSendFailed).Add(float64(len(spans)))
	if now := time.Now(); now.Sub(e.logged) >= logInterval {
		e.logged = now
		e.logger.WarnContext(ctx, "traces are lost: the collector does not take them", "spans", len(spans), "error", err)
	}
	return nil
}
