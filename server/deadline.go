package server

import (
	"context"
	"time"
)

// maxAnswerMargin is how much of a long deadline is kept to answer in.
const maxAnswerMargin = 100 * time.Millisecond

// answerContext returns a context that ends a little before the deadline of ctx, so that the server can
// still answer: by a tenth of the time left, at most 100 ms. It also ends after limit, unless limit is 0.
func answerContext(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	now := time.Now()
	deadline, ok := ctx.Deadline()
	if ok {
		left := deadline.Sub(now)
		deadline = deadline.Add(-min(left/10, maxAnswerMargin))
	}
	if limit > 0 && (!ok || deadline.Sub(now) > limit) {
		deadline, ok = now.Add(limit), true
	}
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline)
}
