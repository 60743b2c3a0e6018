package shard

import (
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// WriteBatch is what one Write script applies, whole or not at all.
type WriteBatch struct {
	// ID identifies the batch: a batch that is sent again because its answer was lost is met by the claim
	// that it left, and answered as before.
	ID string
	// Made is when the batch was made, by the Redis clock as the sender knows it. The script refuses a
	// batch made too long ago, so that a copy which was held up on its way cannot be applied after its
	// claim was forgotten.
	Made   int64
	Shards []ShardWrite
	// Counts are keys to read right after the batch is applied, if that costs no second wait: see WriteReply.
	Counts []KeyGroup
}

// ShardWrite is the part of a batch that goes to one shard.
type ShardWrite struct {
	Shard int
	// Entries have distinct keys. Those at the front whose delta is 1 cost less.
	Entries []counter.Entry
	// Reset says that the deltas of Entries, which are 0, are to be what brings the increments of their keys on the
	// shard to 0, as base and pending deltas say. Likes are left out.
	Reset bool
	// Markers are the spread markers that the sender knows of, by position in Entries, 0 for none. Only
	// an entry on its home shard has one. If the script knows better it refuses and says so.
	Markers []Marker
	Claims  []ClaimGroup
	// Likes are set one after the other, after Entries were added.
	Likes []LikeWrite
}

// LikeWrite sets an actor's like of a key. Other than an entry, it may be left undone in a batch that is applied:
// see LikeResult.
type LikeWrite struct {
	counter.Pair
	Liked bool
	// Marker is the key's spread marker as the sender knows it, as in ShardWrite.Markers.
	Marker Marker
	// Known is what the sender knows of the like's state, for when Redis does not.
	Known KnownLike
	// Group and Field are the position of the like's request id in Claims; Group is -1 if it has none. What is kept
	// with the id is its value and a byte that says what became of the like: 1 changed, 0 unchanged.
	Group, Field int
	// At is the moment that the like is set as of, in Unix microseconds, 0 for now. It changes nothing if the like was
	// last set then or later. Such a like is not LikeSupposed: its moment may be before one that nobody could be asked for.
	At int64
}

// KnownLike is what the sender of a like knows of its state.
type KnownLike struct {
	Source LikeSource
	// PendingLike is the state, of a LikeLoaded. A pair that was never changed has no times.
	PendingLike
	// Watermark is that of the shard in the snapshot of the ledger that was read (LikeLoaded). If a later window is
	// being finished, the state may be in that one, and must be read again.
	Watermark int64
}

// LikeSource is where a state comes from.
type LikeSource uint8

const (
	// LikeUnasked: the sender has not looked.
	LikeUnasked LikeSource = iota
	// LikeLoaded: from the ledger, or from the shard that was the pair's place before its key was spread.
	LikeLoaded
	// LikeSupposed: the ledger cannot be asked. The like is taken for what it is not.
	LikeSupposed
)

// LikeResult is what became of a like in a batch that was applied.
type LikeResult byte

const (
	// LikeUnknown: not done, because its state is known neither to Redis nor, by a fresh enough look, to the sender.
	LikeUnknown LikeResult = '?'
	// LikeChanged: done, and it was something else before.
	LikeChanged LikeResult = '1'
	// LikeUnchanged: done, and it was that before; or it has a moment, and was set then or later.
	LikeUnchanged LikeResult = '0'
	// LikeOverflows: not done, because the total could leave int64.
	LikeOverflows LikeResult = 'o'
)

// ClaimKind says how a claim is kept.
type ClaimKind uint8

const (
	// ClaimTimed is a UUIDv7 request id, kept by its own time.
	ClaimTimed ClaimKind = iota
	// ClaimOpaque is any other request id, kept by the time it was first seen.
	ClaimOpaque
	// ClaimOnce is an actor and key that count once in a period.
	ClaimOnce
)

// ClaimValue is what a shard knows of a request id.
type ClaimValue struct {
	Known bool
	// Value is what is kept with it.
	Value string
}

// ClaimGroup is a group of claims that are kept in one Redis hash.
type ClaimGroup struct {
	Kind ClaimKind
	// Bucket is the start of the claims' time bucket (ClaimTimed) or period (ClaimOnce).
	Bucket int64
	// Oldest and Newest are the range of the ids' times (ClaimTimed).
	Oldest, Newest int64
	// Period is the length of the period in ms (ClaimOnce).
	Period int64
	// Current says that Bucket was taken from the Redis clock and must be its current period
	// (ClaimOnce); otherwise it was taken from a request id.
	Current bool
	// Fields are distinct within the batch, shard and bucket. Values[i] is kept with Fields[i].
	Fields, Values []string
}

// WriteStatus is the verdict on a batch.
type WriteStatus uint8

const (
	// WriteApplied: the batch is applied, by this call or an earlier one.
	WriteApplied WriteStatus = iota
	// WriteRefused: nothing was changed, for the reasons listed.
	WriteRefused
	// WriteLate: nothing was changed by this call. By the Redis clock the batch was made too long ago, in
	// the future, or before a rollback was noticed.
	WriteLate
)

// WriteReply is the answer to a batch. The lists but Likes and Counts are of a refused batch.
type WriteReply struct {
	Status WriteStatus
	// Micros is when the script ran, in Unix microseconds.
	Micros int64
	// Likes are the results of all likes of an applied batch, shard by shard. A batch that was applied before gets
	// the same ones.
	Likes []LikeResult
	// Counts is what Read would have answered for WriteBatch.Counts at a moment after the batch was applied. It is nil
	// if that was not read: whatever became of it, the batch stands.
	Counts []ReadReply
	// Known are claims that were there already.
	Known []KnownClaim
	// Moved are entries and likes whose marker differs from the one that the sender knew.
	Moved []MovedEntry
	// Aged are claim groups some of whose ids are too old or too early, or whose period is not the
	// current one.
	Aged []AgedGroup
	// Overflowing are entries that could carry the shard's total over the edge of int64, and resets of keys whose base
	// is not cached.
	Overflowing []EntryRef
}

// EntryRef names an entry by its position in the batch, or a like by its position after the shard's entries.
type EntryRef struct{ Shard, Entry int }

// KnownClaim names a claim by its position in the batch, with the value that was kept.
type KnownClaim struct {
	Shard, Group, Field int
	Value               string
}

// MovedEntry is an entry and the marker that its key has, 0 for none.
type MovedEntry struct {
	EntryRef
	Marker Marker
}

// AgedGroup names a claim group by its position in the batch.
type AgedGroup struct {
	Shard, Group int
	// Lost is when a rollback of the shard was last noticed: ids made up to then are not accepted.
	Lost int64
}

// KeyGroup is keys to read on one shard.
type KeyGroup struct {
	Shard int
	Keys  []string
	// Away says that the shard is the home of none of the keys, so that a Read need not look for their markers.
	Away bool
}

// ReadReply is the answer to a KeyGroup, in the order of its keys.
type ReadReply struct {
	// Micros is when the script ran, in Unix microseconds.
	Micros int64
	Values []KeyValue
}

// KeyValue is what one shard holds of a key.
type KeyValue struct {
	// Value is base plus pending deltas, if Cached, and Likes the part of it that comes from likes.
	Value, Likes int64
	// Cached is false if the base must be loaded.
	Cached bool
	// Marker is the key's spread marker, 0 for none; only the home shard knows it.
	Marker Marker
}

// PairGroup is pairs to look up on one shard.
type PairGroup struct {
	Shard int
	Pairs []counter.Pair
}

// PairValue is what one shard knows of a pair.
type PairValue struct {
	// Known is false if neither the membership of the last hours nor a window has the pair.
	Known bool
	PendingLike
	// Marker is the key's spread marker, 0 for none; only the home shard knows it.
	Marker Marker
}

// HomeReply is what a home answers about keys.
type HomeReply struct {
	// Marked is the window that was the shard's newest when a key was last marked, math.MaxInt64 if the shard does not know. In
	// later windows it takes no like that its markers send elsewhere.
	Marked int64
	// Markers in the order of the keys, 0 for none.
	Markers []Marker
}

// Base is what the ledger holds of a key for one shard.
type Base struct {
	Key string
	// Total is increments and likes, Likes the part of it that comes from likes.
	Total, Likes int64
	// Marker is the key's spread marker in the ledger, ImpliedMarker, or 0 for none or if the shard is not its home.
	Marker Marker
	TTL    time.Duration
}

// SealedWindow names a sealed window.
type SealedWindow struct {
	// ID is the time of its start.
	ID int64
	// Token was drawn at random when it was sealed. A Redis that went back in time does not know it.
	Token string
}

// SealReply is the answer to Seal.
type SealReply struct {
	Time int64
	// Windows is how many windows the shard has, open and sealed.
	Windows int
	// Sealed are windows to drain, oldest first; More says that there are others, newer ones.
	Sealed []SealedWindow
	More   bool
	// RolledBack reports that this call noticed a rollback of Redis.
	RolledBack bool
	// RestoreDue reports that the shard's markers must be restored from the ledger after a rollback.
	RestoreDue bool
}

// WindowPart is what a window holds, or a chunk of it.
type WindowPart struct {
	// Deltas are the pending deltas by key. LikeDeltas are the part of them that is supposed to come from likes.
	Deltas, LikeDeltas map[string]int64
	// Likes are the last states that pairs were set to in the window.
	Likes map[counter.Pair]PendingLike
	// Markers are the spread markers set in the window.
	Markers map[string]Marker
}

// PendingLike is the state that a pair was last set to in a window.
type PendingLike struct {
	Liked bool
	// New says of a like that its pair was never set before, as far as ledger and shard know. It may be wrong, and spares work
	// where it is right.
	New bool
	// Micros is when, and orders the states of a pair: it grows with each of them. Since is since when the pair is
	// supposed to have the state, which is Micros if that changed it.
	Micros, Since int64
}

// Moves is what Move takes out of a window that the ledger applied. Likes stay in it until its end.
type Moves struct {
	Deltas  []MovedDelta // of distinct keys
	Markers []string
}

// MovedDelta is what a window holds of a key: Delta in all, Likes of it from likes.
type MovedDelta struct {
	Key          string
	Delta, Likes int64
	// Reload says that the ledger applied something else. The cached base is dropped, and loaded when it is needed.
	Reload bool
}
