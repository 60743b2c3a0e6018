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
	// Likes reads afresh which of the keys an actor likes, in the order of keys, which may repeat. If one
	// cannot be told, none is.
	Likes(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error)
}

// Reports is the ledger, as far as it is read past the live store. Its methods are called concurrently and
// return soon after ctx ends.
//
// Lists are newest first, begin right behind the cursor, and have up to limit likes: 1 to counter.MaxListed + 1,
// the one beyond a page by which the server learns that there are more. A short list is the end.
type Reports interface {
	// ListLikers lists who likes a key.
	ListLikers(ctx context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error)
	// ListLiked lists what an actor likes.
	ListLiked(ctx context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error)
}
