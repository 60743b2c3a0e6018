package client

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// Outcome says what became of a change that was not refused.
type Outcome int

const (
	// Applied: this call has been counted.
	Applied Outcome = iota + 1
	// Duplicate: the caller's request id has been counted, by an earlier call or by an earlier attempt of
	// this one.
	Duplicate
	// AlreadyCounted: the actor of OncePer has been counted for this key in this period; this call changed
	// nothing.
	AlreadyCounted
)

// String returns the outcome's name.
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "Applied"
	case Duplicate:
		return "Duplicate"
	case AlreadyCounted:
		return "AlreadyCounted"
	default:
		return fmt.Sprintf("Outcome(%d)", int(o))
	}
}

// Entry is one change of a BatchIncrement.
type Entry struct {
	Key string
	// Delta to add, never 0.
	Delta int64
}

// Receipt acknowledges a change.
type Receipt struct {
	Outcome Outcome
	// AsOf is a moment by the store's clock from which every server's fresh read shows the change.
	AsOf time.Time
}

// Count is what a counter was at a moment.
type Count struct {
	Key string
	// Count is the sum of all increments and likes, 0 for a key never seen.
	Count int64
	// Likes is the part of Count that comes from likes.
	Likes int64
	// AsOf is the moment, by the store's clock, at which this was true. On Redis Cluster, where the shards of a hot key are read one
	// by one, the count of such a key may have changes of a moment after it too.
	AsOf time.Time
	// Stale is true if the store could not be asked: this is the last known value, which may be older
	// than MaxAge or MinAsOf allow.
	Stale bool
}

// answeredChange is what the answers to all changes have in common.
type answeredChange interface {
	GetOutcome() plusonev1.Outcome
	GetAsOf() *timestamppb.Timestamp
}

// receipt reads the answer to a change. ownID: the client made the request id. Nobody else has used that, so
// a duplicate of it is this very call, whose answer to an earlier attempt was lost.
func receipt(answer answeredChange, ownID bool) (Receipt, error) {
	r := Receipt{AsOf: moment(answer.GetAsOf())}
	switch answer.GetOutcome() {
	case plusonev1.Outcome_OUTCOME_APPLIED:
		r.Outcome = Applied
	case plusonev1.Outcome_OUTCOME_DUPLICATE:
		r.Outcome = Duplicate
		if ownID {
			r.Outcome = Applied
		}
	case plusonev1.Outcome_OUTCOME_ALREADY_COUNTED:
		r.Outcome = AlreadyCounted
	default:
		return Receipt{}, status.Error(codes.Internal, "server answered an unknown outcome")
	}
	return r, nil
}

// count reads the answer for a key. It never takes a missing answer, or that for another key, for a 0.
func count(answer *plusonev1.Count, key string) (Count, error) {
	if answer == nil || answer.GetKey() != key {
		return Count{}, status.Error(codes.Internal, "server answered without the count that was asked for")
	}
	return Count{
		Key:   key,
		Count: answer.GetCount(),
		Likes: answer.GetLikes(),
		AsOf:  moment(answer.GetAsOf()),
		Stale: answer.GetStale(),
	}, nil
}

// counts reads the answers for keys, in their order.
func counts(answers []*plusonev1.Count, keys []string) ([]Count, error) {
	if len(answers) != len(keys) {
		return nil, status.Error(codes.Internal, "server answered another number of counts than was asked for")
	}
	result := make([]Count, len(keys))
	for i, key := range keys {
		var err error
		if result[i], err = count(answers[i], key); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// moment is the zero time, not 1970, for an absent timestamp.
func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
