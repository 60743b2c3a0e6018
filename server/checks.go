package server

import (
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// maxViolations bounds the violations that are listed to the caller. The checks stop there.
const maxViolations = 10

// defaultMaxAge is the max_age of a read that asks for none.
const defaultMaxAge = 5 * time.Second

// violations collects what is wrong with a request. The zero value is a request with nothing wrong.
type violations struct {
	list []*errdetails.BadRequest_FieldViolation
	// kind is the metric label of the first violation: its field without an index.
	kind string
}

func (v *violations) add(kind, field, description string) {
	if len(v.list) == 0 {
		v.kind = kind
	}
	if !v.full() {
		v.list = append(v.list, &errdetails.BadRequest_FieldViolation{Field: field, Description: description})
	}
}

func (v *violations) full() bool { return len(v.list) >= maxViolations }

// err is nil if there are no violations.
func (v *violations) err() error {
	if len(v.list) == 0 {
		return nil
	}
	return invalidRequest(reasonInvalidRequest, v.list)
}

// checkIncrement returns the change that a request asks for. The change is valid only if v stays empty.
func checkIncrement(req *plusonev1.IncrementRequest, maxDelta int64, v *violations) counter.Change {
	checkText("key", req.Key, counter.MaxKeyBytes, v)
	delta := int64(1)
	if req.Delta != nil {
		delta = *req.Delta
	}
	if problem := deltaProblem(delta, maxDelta); problem != "" {
		v.add("delta", "delta", problem)
	}
	if req.Actor != "" {
		checkText("actor", req.Actor, counter.MaxActorBytes, v)
	}
	return counter.Change{
		Entries:   []counter.Entry{{Key: req.Key, Delta: delta}},
		RequestID: checkRequestID(req.RequestId, v),
		Actor:     req.Actor,
		OncePer:   checkOncePer(req.OncePer, req.Actor, v),
	}
}

// checkBatch returns the change that a request asks for. The change is valid only if v stays empty.
func checkBatch(req *plusonev1.BatchIncrementRequest, maxDelta int64, v *violations) counter.Change {
	id := checkRequestID(req.RequestId, v)
	if n := len(req.Entries); n < 1 || n > counter.MaxEntries {
		v.add("entries", "entries", fmt.Sprintf("must be 1 to %d entries, not %d", counter.MaxEntries, n))
		return counter.Change{}
	}
	for i, e := range req.Entries {
		if v.full() {
			return counter.Change{}
		}
		if problem := textProblem(e.GetKey(), counter.MaxKeyBytes); problem != "" {
			v.add("entries", indexed("entries", i)+".key", problem)
		}
		if problem := deltaProblem(e.GetDelta(), maxDelta); problem != "" {
			v.add("entries", indexed("entries", i)+".delta", problem)
		}
	}
	if len(v.list) > 0 {
		return counter.Change{}
	}
	entries, overflowing := sumEntries(req.Entries)
	if overflowing >= 0 {
		v.add("entries", indexed("entries", overflowing)+".delta", "overflows the sum of the key's entries")
		return counter.Change{}
	}
	return counter.Change{Entries: entries, RequestID: id}
}

// likeRequest is what a Like and an Unlike have in common.
type likeRequest interface {
	GetKey() string
	GetActor() string
	GetRequestId() string
}

// checkLike returns the change that a request asks for. The change is valid only if v stays empty.
func checkLike(req likeRequest, action counter.LikeAction, v *violations) counter.Change {
	checkText("key", req.GetKey(), counter.MaxKeyBytes, v)
	checkText("actor", req.GetActor(), counter.MaxActorBytes, v)
	return counter.Change{
		Entries:   []counter.Entry{{Key: req.GetKey()}},
		RequestID: checkRequestID(req.GetRequestId(), v),
		Actor:     req.GetActor(),
		Like:      action,
	}
}

// checkKeys checks the keys of a read of many.
func checkKeys(keys []string, v *violations) {
	if n := len(keys); n < 1 || n > counter.MaxReadKeys {
		v.add("keys", "keys", fmt.Sprintf("must be 1 to %d keys, not %d", counter.MaxReadKeys, n))
		return
	}
	for i, key := range keys {
		if v.full() {
			return
		}
		if problem := textProblem(key, counter.MaxKeyBytes); problem != "" {
			v.add("keys", indexed("keys", i), problem)
		}
	}
}

// checkFreshness returns what a read asks of its answer.
func checkFreshness(maxAge *durationpb.Duration, minAsOf *timestamppb.Timestamp, v *violations) freshness {
	want := freshness{maxAge: defaultMaxAge}
	if maxAge != nil {
		switch {
		case !maxAge.IsValid():
			v.add("max_age", "max_age", "must be a valid duration")
		case maxAge.Seconds < 0 || maxAge.Nanos < 0:
			v.add("max_age", "max_age", "must not be negative")
		default:
			want.maxAge = maxAge.AsDuration()
		}
	}
	if minAsOf != nil {
		if minAsOf.IsValid() {
			want.minAsOf = minAsOf.AsTime()
		} else {
			v.add("min_as_of", "min_as_of", "must be a valid timestamp")
		}
	}
	return want
}

func checkRequestID(id string, v *violations) counter.RequestID {
	if id == "" {
		return counter.RequestID{}
	}
	if problem := textProblem(id, counter.MaxRequestIDBytes); problem != "" {
		v.add("request_id", "request_id", problem)
		return counter.RequestID{}
	}
	return counter.ParseRequestID(id)
}

func checkOncePer(oncePer *durationpb.Duration, actor string, v *violations) time.Duration {
	if oncePer == nil {
		return 0
	}
	// The range is checked on the message, because a long one does not fit a time.Duration.
	const maxSeconds = int64(counter.MaxOncePer / time.Second)
	switch {
	case !oncePer.IsValid():
		v.add("once_per", "once_per", "must be a valid duration")
	case oncePer.Seconds < 0 || oncePer.Nanos < 0 || oncePer.Seconds == 0 && oncePer.Nanos == 0:
		v.add("once_per", "once_per", "must be positive")
	case oncePer.Nanos%int32(time.Millisecond) != 0:
		v.add("once_per", "once_per", "must be whole milliseconds")
	case oncePer.Seconds > maxSeconds || oncePer.Seconds == maxSeconds && oncePer.Nanos > 0:
		v.add("once_per", "once_per", "must be at most 7 days")
	}
	if actor == "" {
		v.add("actor", "actor", "must be given with once_per")
	}
	return oncePer.AsDuration()
}

// checkText checks a key or actor that must be there.
func checkText(field, text string, maxBytes int, v *violations) {
	if problem := textProblem(text, maxBytes); problem != "" {
		v.add(field, field, problem)
	}
}

// deltaProblem says what is wrong with a delta, or is empty.
func deltaProblem(delta, maxDelta int64) string {
	switch {
	case delta == 0:
		return "must not be 0"
	case delta > maxDelta, delta < -maxDelta:
		return "must be at most " + strconv.FormatInt(maxDelta, 10) + " either way"
	}
	return ""
}

// textProblem says what is wrong with a key, actor or request id, or is empty.
func textProblem(text string, maxBytes int) string {
	switch {
	case text == "":
		return "must not be empty"
	case len(text) > maxBytes:
		return "must be at most " + strconv.Itoa(maxBytes) + " bytes"
	case !printable(text):
		return "must be printable UTF-8 without spaces"
	}
	return ""
}

// printable reports whether text is valid UTF-8 of printable characters, none of them a space.
func printable(text string) bool {
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c >= 0x7f {
			return printableRunes(text[i:])
		}
	}
	return true
}

func printableRunes(text string) bool {
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		// U+0020 is the only space that IsPrint lets pass.
		if r == utf8.RuneError && size == 1 || r == ' ' || !unicode.IsPrint(r) {
			return false
		}
		text = text[size:]
	}
	return true
}

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
