package server

import (
	"context"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Store is the live store. Its methods are called concurrently and return soon after ctx ends.
type Store interface {
	// Apply makes a change, whole or not at all.
	Apply(ctx context.Context, c counter.Change) (counter.Receipt, error)
	// Counts reads each key afresh: at some moment after the call began. The answers are in the order of
	// keys, which are distinct, each a count or an error.
	Counts(ctx context.Context, keys []string) []counter.Reading
}
