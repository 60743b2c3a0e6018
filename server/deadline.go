package server

import (
	"context"
	"time"

	"github.com/plusone-dev/plusone/internal/deadline"
)

// maxAnswerMargin is how much of a long deadline is kept to answer in.
const maxAnswerMargin = 100 * time.Millisecond

// answerBy is when a call must be worked on no longer, so that the server can still answer: a tenth of the time left,
// at most 100 ms, before the deadline of ctx, and at most limit from now, unless limit is 0. It is false if there is
// no such time.
func answerBy(ctx context.Context, limit time.Duration) (time.Time, bool) {
	now := time.Now()
	by, ok := ctx.Deadline()
	if ok {
		left := by.Sub(now)
		by = by.Add(-min(left/10, maxAnswerMargin))
	}
	if limit > 0 && (!ok || by.Sub(now) > limit) {
		return now.Add(limit), true
	}
	return by, ok
}

// answerContext returns a context that ends then.
func answerContext(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	by, ok := answerBy(ctx, limit)
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, by)
}

// answerWithin is answerContext for calls of which there are many: its contexts share timers. It also returns when the
// context ends. There must be a limit. Release the context.
func answerWithin(ctx context.Context, timers *deadline.Timers, limit time.Duration) (*deadline.Context, time.Time) {
	until, _ := answerBy(ctx, limit)
	return timers.With(ctx, until), until
}
