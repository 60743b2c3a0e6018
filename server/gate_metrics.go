package server

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/internal/limit"
)

// limitKinds are those of limits.
var limitKinds = []limit.Kind{limit.ActorKey, limit.Actor, limit.Caller}

// gateMetrics are what a gate counts. All labels are there from the start.
type gateMetrics struct {
	refusals  *prometheus.CounterVec
	decisions *prometheus.CounterVec

	refused      map[string]prometheus.Counter         // by reason
	statuses     map[*status.Status]prometheus.Counter // by those that never vary
	allowed      map[limit.Kind]prometheus.Counter
	exhausted    map[limit.Kind]prometheus.Counter
	undetermined map[limit.Kind]prometheus.Counter
}

func newGateMetrics() *gateMetrics {
	m := &gateMetrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_gate_refused_total", Help: "Changes that must not count, by reason.",
		}, []string{"reason"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_gate_limit_decisions_total",
			Help: "Changes that limits were asked about, by limit and result: allowed, refused, or failed if the limiter could not tell.",
		}, []string{"limit", "result"}),
		refused: map[string]prometheus.Counter{}, statuses: map[*status.Status]prometheus.Counter{},
		allowed: map[limit.Kind]prometheus.Counter{}, exhausted: map[limit.Kind]prometheus.Counter{},
		undetermined: map[limit.Kind]prometheus.Counter{},
	}
	for _, reason := range []string{reasonRateLimited, reasonGuardDenied, reasonGuardUnavailable} {
		m.refused[reason] = m.refusals.WithLabelValues(reason)
	}
	for st, reason := range map[*status.Status]string{
		statusIncrementsDenied: reasonIncrementsDenied, statusLikesDenied: reasonLikesDenied,
		statusAnonymousDenied: reasonAnonymousDenied, statusActorBlocked: reasonActorBlocked,
		statusExpired: reasonRequestIDExpired, statusGuardUnavailable: reasonGuardUnavailable,
	} {
		m.statuses[st] = m.refusals.WithLabelValues(reason)
	}
	for _, kind := range limitKinds {
		m.allowed[kind] = m.decisions.WithLabelValues(kind.String(), "allowed")
		m.exhausted[kind] = m.decisions.WithLabelValues(kind.String(), "refused")
		m.undetermined[kind] = m.decisions.WithLabelValues(kind.String(), "failed")
	}
	return m
}

func (m *gateMetrics) register(registry *prometheus.Registry) error {
	return errors.Join(registry.Register(m.refusals), registry.Register(m.decisions))
}

// refuse counts a refusal by a status that never varies.
func (m *gateMetrics) refuse(st *status.Status) { m.statuses[st].Inc() }

// decided counts the verdict on a change: each limit that allowed it, or the one that did not.
func (m *gateMetrics) decided(wants []limit.Want, verdict limit.Verdict) {
	if !verdict.Allowed {
		m.exhausted[wants[verdict.Lacking].Kind].Inc()
		return
	}
	for i := range wants {
		m.allowed[wants[i].Kind].Inc()
	}
}

func (m *gateMetrics) failed(wants []limit.Want) {
	for i := range wants {
		m.undetermined[wants[i].Kind].Inc()
	}
}
