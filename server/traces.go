package server

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/plusone-dev/plusone/internal/counter"
)

// tracedStore is a store whose changes are told to the spans of their calls.
type tracedStore struct{ Store }

func (s tracedStore) Apply(ctx context.Context, c counter.Change) (counter.Receipt, error) {
	asked := time.Now()
	receipt, err := s.Store.Apply(ctx, c)
	if err == nil {
		traceChange(ctx, asked, receipt)
	}
	return receipt, err
}

// traceChange tells the span of a call, if it has one, how long the change waited for its batch, which it shared with how
// many, and what became of it. Asked is when the store was asked.
func traceChange(ctx context.Context, asked time.Time, receipt counter.Receipt) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("plusone.outcome", outcomeNames[receipt.Outcome]))
	if receipt.Batch.Sent.IsZero() {
		return
	}
	span.AddEvent("batch sent", trace.WithTimestamp(receipt.Batch.Sent))
	span.SetAttributes(
		attribute.Float64("plusone.batch.wait_seconds", receipt.Batch.Sent.Sub(asked).Seconds()),
		attribute.Int("plusone.batch.changes", receipt.Batch.Changes),
	)
}

// traceID is that of a call that is traced, or empty.
func traceID(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsSampled() {
		return ""
	}
	return span.TraceID().String()
}
