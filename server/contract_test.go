package server

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// The contract of requests as the comments of api/plusone/v1/*.proto state it, written a second time from them and
// with other means than the checks, which the fuzz targets compare with it.

// alphabet is that of keys, actors and request ids: letters, marks, numbers, punctuation and symbols.
var alphabet = regexp.MustCompile(`^[\pL\pM\pN\pP\pS]+$`)

func isText(text string, maxBytes int) bool {
	return len(text) <= maxBytes && utf8.ValidString(text) && alphabet.MatchString(text)
}

func isKey(text string) bool   { return isText(text, 256) }
func isActor(text string) bool { return isText(text, 128) }
func isID(text string) bool    { return text == "" || isText(text, 128) }

func isDelta(delta, most int64) bool { return delta != 0 && -most <= delta && delta <= most }

// isSpan reports whether a duration is valid by its own contract, and not negative.
func isSpan(d *durationpb.Duration) bool {
	return 0 <= d.Seconds && d.Seconds <= 315_576_000_000 && 0 <= d.Nanos && d.Nanos < 1e9
}

func isOncePer(d *durationpb.Duration) bool {
	if !isSpan(d) || d.Seconds > 7*24*3600 || d.Nanos%1e6 != 0 {
		return false
	}
	ms := d.Seconds*1000 + int64(d.Nanos)/1e6
	return 0 < ms && ms <= 7*24*3600*1000
}

// isMoment reports whether a timestamp is valid by its own contract: from the year 1 to 9999.
func isMoment(ts *timestamppb.Timestamp) bool {
	return -62_135_596_800 <= ts.Seconds && ts.Seconds < 253_402_300_800 && 0 <= ts.Nanos && ts.Nanos < 1e9
}

// isPageToken takes a token apart as page_token.go describes it, and wants it to be what is made of its parts.
func isPageToken(l list, of, token string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) < 17 {
		return false
	}
	at, name, longest := binary.BigEndian.Uint64(raw[9:17]), string(raw[17:]), 256
	if l == likersOfKey {
		longest = 128
	}
	return at < 253_402_300_800e6 && isText(name, longest) &&
		token == pageToken(l, of, counter.LikeCursor{At: time.UnixMicro(int64(at)), Name: name})
}

// faults collects the paths of the fields by which a request breaks the contract.
type faults []string

func (f *faults) unless(ok bool, path string) {
	if !ok {
		*f = append(*f, path)
	}
}

// broken returns the fields by which a request breaks the contract. It knows every request that the fuzz targets make.
func broken(t *testing.T, req proto.Message, maxDelta int64) []string {
	t.Helper()
	var f faults
	switch r := req.(type) {
	case *plusonev1.IncrementRequest:
		f.unless(isKey(r.Key), "key")
		f.unless(r.Delta == nil || isDelta(*r.Delta, maxDelta), "delta")
		f.unless(isID(r.RequestId), "request_id")
		f.unless(r.OncePer == nil || isOncePer(r.OncePer), "once_per")
		f.unless(isActor(r.Actor) || r.Actor == "" && r.OncePer == nil, "actor")
	case *plusonev1.BatchIncrementRequest:
		f.unless(isID(r.RequestId), "request_id")
		f.entries(r.Entries, maxDelta)
	case *plusonev1.GetRequest:
		f.unless(isKey(r.Key), "key")
		f.freshness(r)
	case *plusonev1.BatchGetRequest:
		f.keys(r.Keys)
		f.freshness(r)
	case *plusonev1.LikeRequest:
		f.like(r)
	case *plusonev1.UnlikeRequest:
		f.like(r)
	case *plusonev1.BatchGetLikesRequest:
		f.unless(isActor(r.Actor), "actor")
		f.keys(r.Keys)
	case *plusonev1.ListLikersRequest:
		f.unless(isKey(r.Key), "key")
		f.page(likersOfKey, r.Key, r)
	case *plusonev1.ListLikedRequest:
		f.unless(isActor(r.Actor), "actor")
		f.page(likedByActor, r.Actor, r)
	default:
		t.Fatalf("nothing is known of the contract of %T", req)
	}
	return f
}

// entries wants sums that fit, of each key and after each entry, only of a batch in which nothing else is wrong.
func (f *faults) entries(entries []*plusonev1.BatchEntry, maxDelta int64) {
	if len(entries) < 1 || len(entries) > 10_000 {
		f.unless(false, "entries")
		return
	}
	for i, e := range entries {
		f.unless(isKey(e.GetKey()), fmt.Sprintf("entries[%d].key", i))
		f.unless(isDelta(e.GetDelta(), maxDelta), fmt.Sprintf("entries[%d].delta", i))
	}
	if len(*f) > 0 {
		return
	}
	sums := map[string]*big.Int{}
	for i, e := range entries {
		if sums[e.Key] == nil {
			sums[e.Key] = new(big.Int)
		}
		if !sums[e.Key].Add(sums[e.Key], big.NewInt(e.Delta)).IsInt64() {
			f.unless(false, fmt.Sprintf("entries[%d].delta", i))
			return
		}
	}
}

func (f *faults) keys(keys []string) {
	if len(keys) < 1 || len(keys) > 1_000 {
		f.unless(false, "keys")
		return
	}
	for i, key := range keys {
		f.unless(isKey(key), fmt.Sprintf("keys[%d]", i))
	}
}

func (f *faults) freshness(r interface {
	GetMaxAge() *durationpb.Duration
	GetMinAsOf() *timestamppb.Timestamp
},
) {
	f.unless(r.GetMaxAge() == nil || isSpan(r.GetMaxAge()), "max_age")
	f.unless(r.GetMinAsOf() == nil || isMoment(r.GetMinAsOf()), "min_as_of")
}

func (f *faults) like(r likeRequest) {
	f.unless(isKey(r.GetKey()), "key")
	f.unless(isActor(r.GetActor()), "actor")
	f.unless(isID(r.GetRequestId()), "request_id")
}

func (f *faults) page(l list, of string, r pageRequest) {
	f.unless(0 <= r.GetPageSize() && r.GetPageSize() <= 1_000, "page_size")
	f.unless(r.GetPageToken() == "" || isPageToken(l, of, r.GetPageToken()), "page_token")
}

// hasField reports whether a path such as "entries[3].key" leads to a field of the message, which need not be set, and
// to elements of lists that are there.
func hasField(m protoreflect.Message, path string) bool {
	segment, rest, more := strings.Cut(path, ".")
	name, index, indexed := strings.Cut(strings.TrimSuffix(segment, "]"), "[")
	field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if field == nil || more && field.Message() == nil || indexed && !field.IsList() {
		return false
	}
	if !indexed {
		return !more || !field.IsList() && hasField(m.Get(field).Message(), rest)
	}
	elements := m.Get(field).List()
	i, err := strconv.Atoi(index)
	if err != nil || i < 0 || i >= elements.Len() {
		return false
	}
	return !more || hasField(elements.Get(i).Message(), rest)
}

func TestHasField(t *testing.T) {
	t.Parallel()
	m := (&plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{{}, {}}}).ProtoReflect()
	for path, want := range map[string]bool{
		"request_id": true, "entries": true, "entries[1]": true, "entries[1].key": true, "entries[0].delta": true,
		"": false, "key": false, "requestId": false, "entries[2]": false, "entries[-1].key": false, "entries[x].key": false,
		"entries[1].keys": false, "entries.key": false, "request_id[0]": false, "request_id.key": false, "entries[1].key.x": false,
	} {
		if got := hasField(m, path); got != want {
			t.Errorf("%q: got %v", path, got)
		}
	}
}

// What the targets know is the whole API, also what a later version adds.
func TestContractIsWhole(t *testing.T) {
	t.Parallel()
	for _, m := range methodsByName(t) {
		broken(t, m.input.New().Interface(), 1)
	}
}
