package shard

import (
	"context"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Scripts are the atomic steps of the window protocol on one Redis deployment: each method runs one Lua
// script, and shows either its whole effect or, after an error reply, none. After a lost connection the
// effect is unknown; every step may be repeated.
//
// All times are Unix milliseconds by the Redis clock. A shard is named by its number.
type Scripts interface {
	// Write applies a batch: see WriteBatch.
	Write(ctx context.Context, b *WriteBatch) (WriteReply, error)
	// Read returns bases and pending deltas of keys, by shard. It keeps nothing of groups.
	Read(ctx context.Context, groups []KeyGroup) ([]ReadReply, error)
	// Likes looks up the states of pairs, by shard: in the membership of the last hours, then in the windows.
	Likes(ctx context.Context, groups []PairGroup) ([][]PairValue, error)
	// Homes tells, by shard, up to which window homes may know something of likes that have left them, and the markers of keys.
	// It only reads.
	Homes(ctx context.Context, groups []KeyGroup) ([]HomeReply, error)
	// Load caches bases that were read from the ledger together with the watermark. It reports false, and
	// changes nothing, if a window above the watermark is being moved into the bases: read the ledger
	// again (rule 8).
	Load(ctx context.Context, shard int, watermark int64, bases []Base) (bool, error)
	// Claimed returns what is kept with request ids on a shard, in their order; now is the Redis clock, give or
	// take the dedupe window. It only reads.
	Claimed(ctx context.Context, shard int, ids []counter.RequestID, now int64) ([]ClaimValue, error)
	// Pending tells what a shard has pending. It only reads.
	Pending(ctx context.Context, shard int) (PendingWindows, error)
	// Spread sets the marker of keys whose home is the shard, unless they have one, and returns the
	// markers in force, in the order of keys (rule 9). Width is over how many shards they are spread, from 2 to one
	// less than there are, or 0 for all.
	Spread(ctx context.Context, shard int, keys []string, width int) ([]Marker, error)

	// Seal starts a round of the flush (rules 2 and 6): it notices a rollback, given the ledger's
	// watermark (the last window that was applied, zero if none was), and seals the windows that are old
	// enough. Fresh was never used before: it is the token of those windows and, after a rollback, the
	// new generation of the bases.
	Seal(ctx context.Context, shard int, watermark SealedWindow, fresh string) (SealReply, error)
	// RestoreMarkers puts back the markers that the ledger holds, where Redis has none. Ids made before
	// it ran are not accepted from then on, since they may have been routed without the markers.
	RestoreMarkers(ctx context.Context, shard int, markers map[string]Marker) error
	// Scan reads a sealed window in chunks. Begin with cursor 0; the last chunk returns cursor 0. A field
	// may be returned more than once.
	Scan(ctx context.Context, shard int, window int64, cursor uint64) (next uint64, part WindowPart, err error)
	// Begin starts to finish a window that the ledger applied on top of the watermark previous (rule
	// 4). It reports whether it noticed a rollback.
	Begin(ctx context.Context, shard int, window SealedWindow, previous int64, gen string) (rolledBack bool, err error)
	// Move takes a chunk out of an applied window: deltas enter the bases, markers are in the ledger (rule 4).
	Move(ctx context.Context, shard int, window int64, moves Moves) error
	// End deletes a window, all of whose changes but its likes were moved (rule 4). Likes is how many of those it holds.
	End(ctx context.Context, shard int, window int64, likes int) error
	// Discard deletes a window that is not above the watermark and that the caller did not apply
	// (rule 5).
	Discard(ctx context.Context, shard int, window int64, gen string) error
	// Sweep deletes claims that no accepted request can meet any more.
	Sweep(ctx context.Context, shard int) error
}

// Ledger is what the store reads of the ledger.
type Ledger interface {
	// Bases returns the rows of keys and the watermarks of all shards, in one snapshot.
	Bases(ctx context.Context, keys []string) (LedgerBases, error)
	// Likes returns the states of pairs and the watermarks of all shards, in one snapshot.
	Likes(ctx context.Context, pairs []counter.Pair) (LedgerLikes, error)
	// Likers calls visit with each actor of whom there is a state of the key, liked or not, in any order, and returns the
	// watermarks of all shards, in one snapshot. It ends after most actors. What visit is given is valid during the call.
	Likers(ctx context.Context, key string, most int, visit func(actor []byte)) (watermarks []int64, err error)
}

// PendingWindows are the windows of a shard that are not finished.
type PendingWindows struct {
	// Micros is when it was told, in Unix microseconds.
	Micros int64
	// Oldest and Newest are 0 if there is no window.
	Oldest, Newest int64
	// Likes says whether there ever was a like on the shard. There is none in a window if not.
	Likes bool
}

// LedgerLikes is one snapshot of the ledger.
type LedgerLikes struct {
	// Watermarks by shard number; none where the ledger has no shards.
	Watermarks []int64
	// States in the order of the pairs asked for.
	States []counter.LikeState
}

// LedgerBases is one snapshot of the ledger.
type LedgerBases struct {
	// Watermarks by shard number.
	Watermarks []int64
	Rows       []LedgerRow
}

// LedgerRow is the total of a key on one shard.
type LedgerRow struct {
	Key   string
	Shard int
	// Total is increments and likes, Likes the part of it that comes from likes.
	Total, Likes int64
	// Spread is the key's spread marker, 0 if the row has none; only the home shard's row has one.
	Spread Marker
}
