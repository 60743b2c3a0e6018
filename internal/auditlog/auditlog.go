// Package auditlog writes down who has done what to a deployment: a line of JSON before an action, and one after it.
//
// It has what other logs must not have: the keys and actors that an action is about. An action whose first line cannot
// be written must not be done. One whose second line is missing may have been done, or have been cut short.
package auditlog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// maxFieldBytes bounds each text of a line. Nothing that the API takes is longer.
const maxFieldBytes = 512

// OutcomeOK is the outcome of an action that was done.
const OutcomeOK = "OK"

// Action is what somebody is about to do. Empty fields are left out.
type Action struct {
	// Caller is the name of who calls, Peer its address.
	Caller string `json:"caller,omitempty"`
	Peer   string `json:"peer,omitempty"`
	// Method is what is called, RequestID its id.
	Method    string `json:"method"`
	RequestID string `json:"request_id,omitempty"`
	// Key and Actor are what it is about.
	Key   string `json:"key,omitempty"`
	Actor string `json:"actor,omitempty"`
	// Items is how many things it is about, if it names many.
	Items int `json:"items,omitempty"`
}

func (a Action) clipped() Action {
	for _, text := range []*string{&a.Caller, &a.Peer, &a.Method, &a.RequestID, &a.Key, &a.Actor} {
		*text = clip(*text)
	}
	return a
}

// clip cuts a text short, and makes it valid UTF-8.
func clip(text string) string {
	if len(text) > maxFieldBytes {
		text = text[:maxFieldBytes]
		for len(text) > 0 && !utf8.RuneStart(text[len(text)-1]) {
			text = text[:len(text)-1]
		}
		text = text[:max(len(text)-1, 0)] + "…"
	}
	return strings.ToValidUTF8(text, "�")
}

// line is what is written.
type line struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // begin or end
	// ID is the same in the two lines of an action.
	ID string `json:"id"`
	Action
	Outcome string  `json:"outcome,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// sink takes lines, and returns when they are safe. It is called by one goroutine at a time.
type sink interface {
	write(ctx context.Context, l line) error
	close() error
}

// Log writes down actions. It is safe for concurrent use.
type Log struct {
	logger  *slog.Logger // of the process
	actions *prometheus.CounterVec
	errors  prometheus.Counter

	mu   sync.Mutex
	sink sink
}

// Outcomes by which actions are counted.
const (
	countedOK      = "ok"
	countedFailed  = "failed"
	countedRefused = "not_begun"
)

func newLog(s sink, logger *slog.Logger, registry prometheus.Registerer) (*Log, error) {
	l := &Log{
		sink: s, logger: logger,
		actions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_auditlog_actions_total",
			Help: "Actions of administrators, by outcome; not_begun are those refused because the audit log could not be written.",
		}, []string{"outcome"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_auditlog_errors_total", Help: "Lines that could not be written to the audit log.",
		}),
	}
	for _, outcome := range []string{countedOK, countedFailed, countedRefused} {
		l.actions.WithLabelValues(outcome)
	}
	if err := errors.Join(registry.Register(l.actions), registry.Register(l.errors)); err != nil {
		return nil, fmt.Errorf("register metrics of the audit log: %w", err)
	}
	return l, nil
}

// Begin writes that an action is about to be done. If that fails, the action must not be done. Otherwise end is to be
// called, once, with OutcomeOK or why the action failed.
func (l *Log) Begin(ctx context.Context, action Action) (end func(outcome string), err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	began := line{Time: time.Now().UTC(), Event: "begin", ID: hex.EncodeToString(id[:]), Action: action.clipped()}
	if err := l.write(ctx, began); err != nil {
		l.actions.WithLabelValues(countedRefused).Inc()
		return nil, err
	}
	return func(outcome string) {
		ended := began
		ended.Event, ended.Time, ended.Outcome = "end", time.Now().UTC(), clip(outcome)
		ended.Seconds = ended.Time.Sub(began.Time).Seconds()
		counted := countedFailed
		if outcome == OutcomeOK {
			counted = countedOK
		}
		l.actions.WithLabelValues(counted).Inc()
		// The caller may have gone; what has been done has been done.
		_ = l.write(context.WithoutCancel(ctx), ended) // has been logged and counted
	}, nil
}

func (l *Log) write(ctx context.Context, what line) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.sink.write(ctx, what); err != nil {
		l.errors.Inc()
		l.logger.ErrorContext(ctx, "audit log not written", "event", what.Event, "id", what.ID, "method", what.Method,
			"outcome", what.Outcome, "error", err)
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// Close ends the log. Actions that begin later are refused.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sink.close()
}

// ToLogger makes a log of the log of the process: each line at info level, as the group "audit".
func ToLogger(logger *slog.Logger, registry prometheus.Registerer) (*Log, error) {
	return newLog(loggerSink{logger}, logger, registry)
}

type loggerSink struct{ logger *slog.Logger }

var errLevel = errors.New("the log leaves out lines of level info: let it have them, or write to a file")

func (s loggerSink) write(ctx context.Context, l line) error {
	if !s.logger.Enabled(ctx, slog.LevelInfo) {
		return errLevel
	}
	attrs := []any{slog.String("event", l.Event), slog.String("id", l.ID)}
	for _, a := range []struct{ name, value string }{
		{"caller", l.Caller},
		{"peer", l.Peer},
		{"method", l.Method},
		{"request_id", l.RequestID},
		{"key", l.Key},
		{"actor", l.Actor},
		{"outcome", l.Outcome},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	if l.Items > 0 {
		attrs = append(attrs, slog.Int("items", l.Items))
	}
	if l.Seconds > 0 {
		attrs = append(attrs, slog.Float64("seconds", l.Seconds))
	}
	s.logger.InfoContext(ctx, "audit", slog.Group("audit", attrs...))
	return nil
}

func (loggerSink) close() error { return nil }

// encode makes a line of JSON.
func encode(l line) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}
