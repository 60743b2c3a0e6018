package history

import "time"

// Kind says what an event tells.
type Kind uint8

const (
	// Change: a change is sent for the first time. It has Client, Op, and Entries or Like, and maybe NoID.
	Change Kind = iota + 1
	// Forbidden: a change is sent that must be refused, such as one with an id that was used for another. It has Op.
	Forbidden
	// Repeat: a change is sent again under its request id, after an Answer. It has Op, which is in doubt, or the last
	// one of the Client that was acknowledged.
	Repeat
	// Answer: a Change, Forbidden or Repeat has ended. It has Op, Outcome, and Liked for a like.
	Answer
	// Read: counters are asked for. It has Client, Op, Keys, and MaxAge or After.
	Read
	// ReadAnswer: a Read has ended. It has Op, and Values in the order of the Keys unless it failed.
	ReadAnswer
	// ReadLikes: it is asked which keys an actor likes. It has Op, Keys and Actor.
	ReadLikes
	// ReadLikesAnswer: a ReadLikes has ended. It has Op, and Values in the order of the Keys unless it failed.
	ReadLikesAnswer
	// Floor: every cache of the service is from now on newer than what was acknowledged until now.
	Floor
	// Unsettle: from now on the numbers of likes may be provisional.
	Unsettle
	// Settle: whatever was lost or provisional is set right by now.
	Settle
	// Snapshot: what was acknowledged until now is in the state to which a Rollback will go back.
	Snapshot
	// Rollback: from now on the live store may go back to the last Snapshot.
	Rollback
	// Restored: it went back; what is sent from now on is not lost with it.
	Restored
	// Observe: the durable totals were seen. It has Values, and Source if they are to be checked as what remains at
	// the end, which all sources must agree on.
	Observe
	// ObserveLikes: the durable likes of an actor were seen. It has Actor, Keys, Values and Source.
	ObserveLikes
)

// Outcome is what the service said of a change.
type Outcome uint8

const (
	// Applied: it was counted by this call.
	Applied Outcome = iota + 1
	// Duplicate: its id had been counted before.
	Duplicate
	// InDoubt: it may have been counted.
	InDoubt
	// Refused: this call did not count it.
	Refused
	// Expired: this call did not count it, because its id is too old to tell whether an earlier one did.
	Expired
)

// Entry is what a change adds to a key.
type Entry struct {
	Key   uint32 // index of the key in the history's table
	Delta int64  // not 0
}

// Like is the state that a change sets.
type Like struct {
	Key, Actor uint32
	Liked      bool
}

// Liked is what the answer to a like tells besides its outcome.
type Liked struct {
	Changed, Provisional bool
	// Count is the count of the key, if CountKnown.
	Count      int64
	CountKnown bool
}

// Value is what the service said of a key.
type Value struct {
	Count, Likes int64
	// Stale: the service itself says that this is a last known value.
	Stale bool
	// Liked answers ReadLikes.
	Liked bool
}

// Event is one event of a history. Its Kind says which fields it has.
type Event struct {
	Kind Kind
	// At is when it happened, since the beginning of the history. Events are in this order.
	At time.Duration
	// Client is who calls; a client has one call under way at a time, besides those in doubt.
	Client uint32
	// Op names the call: its begin and end have the same.
	Op      uint64
	Entries []Entry
	Like    *Like
	// NoID: a Change without a request id, which is sent once. If it is in doubt, it stays so.
	NoID    bool
	Outcome Outcome
	Liked   *Liked
	Keys    []uint32
	Actor   uint32
	// MaxAge is how old the answer to a Read may be, 0 for a fresh one.
	MaxAge time.Duration
	// After: a Read that must show the last change of the Client that was acknowledged, and all that was acknowledged
	// before that one began.
	After  bool
	Values []Value
	Failed bool
	Source string
}

// Violation is a broken promise.
type Violation struct {
	At time.Duration
	// Promise is a number of the list in docs/reliability.md.
	Promise int
	Text    string
}
