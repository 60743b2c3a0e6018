package flush

import (
	"context"
	"maps"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// History says how finely a ledger keeps the history of counters. History rows are written in the
// transaction that changes the totals, so the two can never disagree.
type History string

// The history settings.
const (
	HistoryNone   History = "none"
	HistoryHour   History = "hour"
	HistoryMinute History = "minute"
)

// Verdict is what became of one change of a Commit: an outcome, or one of the counter package's errors
// that refuse a single change (reused, expired or early request id, overflow).
type Verdict struct {
	Outcome counter.Outcome
	// Changed is that of counter.Receipt.
	Changed bool
	Err     error
}

// DirectLedger takes changes one by one, as embedded and direct mode do. All methods may be called
// concurrently, by several processes too where the database allows it.
type DirectLedger interface {
	// Commit applies a group of changes in one durable transaction: totals, likes, history, request ids and
	// once-per claims. It returns one verdict per change in their order, and a moment by the ledger's
	// clock from which every read shows them. Changes are decided in their order: the second of two
	// with one request id is a duplicate. A change is applied whole or not at all. Overflows may be judged in
	// another order, since changes of one group were made at the same time.
	//
	// On an error that is counter.ErrInDoubt the transaction may have been committed; on any other
	// error nothing was changed.
	Commit(ctx context.Context, changes []counter.Change) ([]Verdict, time.Time, error)
	// Counts reads totals, in the order of keys. The moment is no later than the snapshot that was read.
	Counts(ctx context.Context, keys []string) ([]counter.Count, error)
	// Likes reads the states of pairs, in one snapshot.
	Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error)
	// PruneClaims forgets request ids and once-per claims that no accepted request can meet any more,
	// at most limit of them, and returns how many it forgot.
	PruneClaims(ctx context.Context, limit int) (int, error)
}

// ShardLock is a flush lock that was taken.
type ShardLock struct {
	// Held returns an error if the lock was lost, as it is with its connection.
	Held func(context.Context) error
	// Release is called once, also after the lock was lost.
	Release func()
}

// WindowLedger takes sealed windows, as the flush worker of sharded mode drains them. All methods may be
// called concurrently, by several processes.
type WindowLedger interface {
	shard.Ledger
	// LockShard takes the shard's flush lock, which keeps workers out of each other's way (their
	// correctness does not depend on it). ok is false if another worker holds it.
	LockShard(ctx context.Context, shard int) (lock ShardLock, ok bool, err error)
	// Watermark is the last window of the shard that was applied, zero if none was.
	Watermark(ctx context.Context, n int) (shard.SealedWindow, error)
	// Apply sets a window's likes, adds its deltas to totals and history and sets the shard's watermark to its
	// id, in one transaction that locks the watermark. A like counts if it changes what the ledger holds: it sets
	// a pair that was not set later, and to something else; what the window supposed of it does not matter. If w.Oldest()
	// is not above the watermark it changes nothing and applied.OK is false. After an error it is unknown whether
	// the window was applied.
	Apply(ctx context.Context, w Window) (Applied, error)
	// Markers returns the spread markers of the keys whose home is the shard.
	Markers(ctx context.Context, shard int) (map[string]shard.Marker, error)
}

// Window is the content of a sealed window, or of several that follow each other.
type Window struct {
	Shard int
	// ID is the Unix milliseconds of the window's start by the Redis clock, and chooses its history bucket. Of several
	// windows, which are of one minute, it is that of the last.
	ID int64
	// First is the id of the first of several windows; 0 is as good as ID.
	First int64
	// Token is that by which the window was sealed.
	Token string
	shard.WindowPart
}

// Applied is what Apply did.
type Applied struct {
	OK bool
	// Previous is the watermark before this window.
	Previous int64
	// Adjusted are the keys whose totals were changed by something else than the window's deltas, because of a like
	// that the window supposed otherwise or a total that was stopped at the edge of int64.
	Adjusted map[string]struct{}
	// Clipped is how many totals were stopped at the edge of int64, CorrectedLikes how many likes were supposed to
	// change something and did not, or the other way round.
	Clipped, CorrectedLikes int
}

func (a *Applied) adjust(key string) {
	if a.Adjusted == nil {
		a.Adjusted = make(map[string]struct{})
	}
	a.Adjusted[key] = struct{}{}
}

// correct returns the window's deltas with what its likes have changed in place of what they were supposed to, and
// notes in applied where that differs.
func (w *Window) correct(likes map[string]int64, applied *Applied) map[string]int64 {
	sums := maps.Clone(w.Deltas)
	if sums == nil {
		sums = make(map[string]int64, len(likes))
	}
	for key, supposed := range w.LikeDeltas {
		if _, ok := likes[key]; !ok && supposed != 0 {
			likes[key] = 0
		}
	}
	for key, changed := range likes {
		if off := changed - w.LikeDeltas[key]; off != 0 {
			sums[key] = counter.AddSaturating(sums[key], off)
			applied.adjust(key)
			applied.CorrectedLikes += int(max(off, -off))
		}
	}
	return sums
}
