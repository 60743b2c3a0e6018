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
}

// ShardWrite is the part of a batch that goes to one shard.
type ShardWrite struct {
	Shard int
	// Entries have distinct keys.
	Entries []counter.Entry
	// Markers are the spread markers that the sender knows of, by position in Entries, 0 for none. Only
	// an entry on its home shard has one. If the script knows better it refuses and says so.
	Markers []int64
	Claims  []ClaimGroup
}

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

// WriteReply is the answer to a batch. The lists are of a refused batch.
type WriteReply struct {
	Status WriteStatus
	// Micros is when the script ran, in Unix microseconds.
	Micros int64
	// Known are claims that were there already.
	Known []KnownClaim
	// Moved are entries whose marker differs from the one that the sender knew.
	Moved []MovedEntry
	// Aged are claim groups some of whose ids are too old or too early, or whose period is not the
	// current one.
	Aged []AgedGroup
	// Overflowing are entries that could carry the shard's total over the edge of int64.
	Overflowing []EntryRef
}

// EntryRef names an entry by its position in the batch.
type EntryRef struct{ Shard, Entry int }

// KnownClaim names a claim by its position in the batch, with the value that was kept.
type KnownClaim struct {
	Shard, Group, Field int
	Value               string
}

// MovedEntry is an entry and the marker that its key has, 0 for none.
type MovedEntry struct {
	EntryRef
	Marker int64
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
}

// ReadReply is the answer to a KeyGroup, in the order of its keys.
type ReadReply struct {
	// Micros is when the script ran, in Unix microseconds.
	Micros int64
	Values []KeyValue
}

// KeyValue is what one shard holds of a key.
type KeyValue struct {
	// Value is base plus pending deltas, if Cached.
	Value int64
	// Cached is false if the base must be loaded.
	Cached bool
	// Marker is the key's spread marker, 0 for none; only the home shard knows it.
	Marker int64
}

// Base is what the ledger holds of a key for one shard.
type Base struct {
	Key   string
	Total int64
	// Marker is the key's spread marker in the ledger, 0 for none or if the shard is not its home.
	Marker int64
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
