package server

import (
	"context"
	"time"

	"github.com/plusone-dev/plusone/internal/deadline"
)

// answerContext returns a context that ends in time to answer the caller, see deadline.Before, and lasts for limit at most, unless that
// is 0. Calls of which there are many have contexts that share timers instead, see deadline.Timers.
func answerContext(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	by, ok := deadline.Before(ctx, time.Now(), limit)
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, by)
}
