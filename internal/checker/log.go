package checker

import (
	"log/slog"
	"sync"
	"time"
)

// logInterval is the time between two lines about failed questions.
const logInterval = time.Second

// failureLog tells of failures, loudly but not more than once in logInterval.
type failureLog struct {
	logger   *slog.Logger
	failOpen bool

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

// onFailure is what becomes of changes meanwhile.
func (l *failureLog) onFailure() slog.Attr {
	if l.failOpen {
		return slog.String("changes", "let in unchecked")
	}
	return slog.String("changes", "refused")
}

func (l *failureLog) failed(cause error) {
	now := time.Now()
	l.mu.Lock()
	if now.Sub(l.last) < logInterval {
		l.suppressed++
		l.mu.Unlock()
		return
	}
	suppressed := l.suppressed
	l.last, l.suppressed = now, 0
	l.mu.Unlock()
	l.logger.Error("the checker could not tell", l.onFailure(), slog.Any("cause", cause), slog.Int("suppressed_before", suppressed))
}

func (l *failureLog) paused() {
	l.logger.Error("the checker keeps failing and is asked only now and then until it answers", l.onFailure())
}

func (l *failureLog) resumed() { l.logger.Info("the checker answers again") }
