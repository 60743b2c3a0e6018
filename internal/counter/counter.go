// Package counter is the vocabulary that the stores, the ledgers and the server share: a change, its
// receipt, a count, and the errors by which a store refuses. It knows neither gRPC nor any database.
package counter

import (
	"math"
	"strings"
	"time"
)

// Limits of one request. They bound memory per request and are part of the API.
const (
	MaxKeyBytes       = 256
	MaxActorBytes     = 128
	MaxRequestIDBytes = 128
	// MaxEntries is how many entries a batch may have, before entries of one key are summed.
	MaxEntries = 10_000
	// MaxReadKeys is how many keys one read may name.
	MaxReadKeys = 1_000
	// MaxOncePer is how long a once-per claim can be held.
	MaxOncePer = 7 * 24 * time.Hour
)

// DefaultDedupeWindow is how long a request id is remembered.
const DefaultDedupeWindow = 5 * time.Minute

// MaxEarly is how far a UUIDv7 request id may be ahead of the store's clock. Claims are kept this much
// longer than the dedupe window, so that an early id is met for as long as it is accepted.
const MaxEarly = 30 * time.Second

// Entry is what a change adds to one key.
type Entry struct {
	Key   string
	Delta int64
}

// Namespace is the part of a key up to the first slash, which says what rules hold for it. It is empty if there is no
// slash.
func Namespace(key string) string {
	namespace, _, found := strings.Cut(key, "/")
	if !found {
		return ""
	}
	return namespace
}

// Change is one caller's change: 1 to MaxEntries entries with distinct keys. A delta is 0 only where a batch
// had entries that cancel each other out (it changes nothing, and its key still notices a reuse of the
// request id) and in a change of a like. Who makes a Change validates it; stores rely on that.
type Change struct {
	Entries []Entry
	// RequestID is the zero RequestID if the caller gave none.
	RequestID RequestID
	// Actor and OncePer are set only on changes of a single entry; OncePer is in whole milliseconds and 0
	// if the caller gave none.
	Actor   string
	OncePer time.Duration
	// ImpliedOncePer says that OncePer is not the caller's but a policy's, which may be another one when the caller tries
	// again: the change is the same.
	ImpliedOncePer bool
	// Like, if it is not NoLike, makes the change one of Actor's like of its one key. The entry's delta is
	// then 0: what the like adds depends on what it stood at.
	Like LikeAction
	// Reset, on a change of a single entry whose delta is 0, takes back all increments of the key that are counted when it
	// is applied: the delta is what brings them to 0, and the likes stay. Of increments that are out of the range of
	// int64 together something is left, which a second reset takes back.
	Reset bool
	// SetAt, of a like without a RequestID, is the moment to set it as of, in Unix microseconds, if it is not 0: nothing
	// changes if the like was last set then or later. Otherwise a like is set as of now.
	SetAt int64
	// WantCount asks for the count after a like. A store that cannot read it along with the change leaves it out.
	WantCount bool
	// Ticket, if not nil, must be redeemed right before the change is made, and may refuse it. It is set only where the store
	// redeems tickets, and on changes of a single entry that are no likes.
	Ticket Ticket
}

// Ticket is what a change needs of others, such as tokens of a rate limit. Many are redeemed together. Its methods may be
// called concurrently.
type Ticket interface {
	// Redeemed reports whether the ticket was redeemed.
	Redeemed() bool
	// Refused is why the change must not be made, or nil. A ticket that was not redeemed refuses.
	Refused() error
}

// Pair is the pair that a change of a like is about.
func (c *Change) Pair() Pair { return Pair{Key: c.Entries[0].Key, Actor: c.Actor} }

// Outcome says what became of a change that was not refused.
type Outcome uint8

const (
	// Applied: this call has been counted.
	Applied Outcome = iota + 1
	// Duplicate: an earlier call with the same request id has been counted.
	Duplicate
	// AlreadyCounted: the actor has been counted for this key in this once-per period.
	AlreadyCounted
)

// Receipt acknowledges a change.
type Receipt struct {
	Outcome Outcome
	// AsOf is a moment by the store's clock from which every fresh read shows the change.
	AsOf time.Time
	// Changed says of a like whether the change, by this call or by the earlier one that it repeats, set it to
	// something else than it was.
	Changed bool
	// Provisional says that the ledger could not be asked what the like was, and Changed supposes that it was the
	// opposite, or what it was when its key became hot. What the change adds is set right when it reaches the ledger.
	Provisional bool
	// Count is what the key of a like was at a moment after the change, as read after Batch.Sent. It is nil unless it was
	// wanted and read along with the change. Others may have it too: nobody changes it.
	Count *Count
	// Batch is what settled the change, for traces; it may be the zero Batch.
	Batch Batch
}

// Batch is a script or transaction that changes shared.
type Batch struct {
	// Sent is when it was sent, by the clock of this process: until then the change waited for it.
	Sent time.Time
	// Changes is how many shared it.
	Changes int
}

// Count is what a counter was at AsOf, a moment of the store's clock.
type Count struct {
	Key   string
	Value int64
	Likes int64
	AsOf  time.Time
}

// Reading is the answer to the read of one key: a count or the reason why there is none.
type Reading struct {
	Count
	Err error
}

// PeriodStart is the start, in Unix milliseconds, of the once-per period that holds the moment ms.
// Periods are aligned to the Unix epoch.
func PeriodStart(ms int64, oncePer time.Duration) int64 {
	per := oncePer.Milliseconds()
	return ms - ms%per
}

// Add returns a+b, and false if the sum does not fit in an int64.
func Add(a, b int64) (int64, bool) {
	c := a + b
	return c, (c > a) == (b > 0)
}

// AddSaturating returns a+b, stopped at the edge of int64 that it would cross.
func AddSaturating(a, b int64) int64 {
	c, ok := Add(a, b)
	switch {
	case ok:
		return c
	case b > 0:
		return math.MaxInt64
	default:
		return math.MinInt64
	}
}
