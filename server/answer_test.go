package server

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// Answers are sent as protobuf encodes the messages of the API, one by one and many together, also after others were encoded.
func TestAnswersAreMessages(t *testing.T) {
	t.Parallel()
	c := newCodec(newMetrics())
	want := &plusonev1.BatchGetResponse{}
	var all answers
	for _, count := range []counter.Count{
		{Key: "k", Value: 1, AsOf: storeTime},
		{Key: strings.Repeat("ключ", 20), Value: math.MinInt64, Likes: math.MaxInt64, AsOf: time.Unix(-1, 999_999_999)},
		{Key: "nothing", AsOf: time.Unix(0, 0)},
		{},
	} {
		e := entryOf(t, count.Key, count, 0, 0)
		late, err := e.staleAnswer()
		if err != nil {
			t.Fatal(err)
		}
		for stale, a := range map[bool]*answer{false: &e.answer, true: late} {
			message := &plusonev1.Count{
				Key: count.Key, Count: count.Value, Likes: count.Likes, AsOf: timestamppb.New(count.AsOf), Stale: stale,
			}
			sent, err := c.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			if encoded := encode(t, &plusonev1.GetResponse{Count: message}); !bytes.Equal(sent.Materialize(), encoded) {
				t.Errorf("%v is sent as %q, want %q", message, sent.Materialize(), encoded)
			}
			all, want.Counts = append(all, a), append(want.Counts, message)
		}
	}
	for n := range 3 { // as many as a pooled buffer is for, too
		sent, err := c.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		if encoded := encode(t, want); !bytes.Equal(sent.Materialize(), encoded) {
			t.Errorf("%d answers are not sent as protobuf would, with %d bytes instead of %d", len(all), sent.Len(), len(encoded))
		}
		sent.Free()
		many := 10*n + 1
		all, want.Counts = slices.Repeat(all, many), slices.Repeat(want.Counts, many)
	}
	if e, err := newEntry("\xff", counter.Count{}, 0, 0); err == nil || e != nil {
		t.Error("a key that is not UTF-8 has an answer")
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// Answers to Get make one to BatchGet as long as both are counts in the same field, and nothing else.
func TestAnswersCanBeJoined(t *testing.T) {
	t.Parallel()
	one := (&plusonev1.GetResponse{}).ProtoReflect().Descriptor().Fields()
	many := (&plusonev1.BatchGetResponse{}).ProtoReflect().Descriptor().Fields()
	if one.Len() != 1 || many.Len() != 1 || one.Get(0).Number() != many.Get(0).Number() ||
		many.Get(0).Cardinality() != protoreflect.Repeated || one.Get(0).Message() != many.Get(0).Message() {
		t.Errorf("the fields are %v and %v", one, many)
	}
}

// Many calls at a time send the same answer, compressed and not, and it stays as it is.
func TestAnswersAreShared(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	keys := []string{"a", "bb", strings.Repeat("c", counter.MaxKeyBytes)}
	var wg sync.WaitGroup
	for g := range 8 {
		option := grpc.CallOption(grpc.EmptyCallOption{})
		if g%2 == 0 {
			option = grpc.UseCompressor(gzip.Name)
		}
		wg.Go(func() {
			for i := range 50 {
				key := keys[i%len(keys)]
				one, err := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: key}, option)
				if err != nil {
					t.Error(err)
					return
				}
				asked := append(slices.Clone(keys), key)
				many, err := r.client.BatchGet(t.Context(), &plusonev1.BatchGetRequest{Keys: asked}, option)
				if err != nil || len(many.Counts) != len(asked) {
					t.Errorf("%d counts for %d keys, %v", len(many.GetCounts()), len(asked), err)
					return
				}
				for j, c := range append(many.Counts, one.Count) {
					want := append(asked, key)[j]
					if c.Key != want || c.Count != int64(len(want)) || !c.AsOf.AsTime().Equal(storeTime) || c.Stale {
						t.Errorf("%s is answered with %v", want, c)
					}
				}
			}
		})
	}
	wg.Wait()
}

// Answers to changes are sent as protobuf encodes their messages, and are one for all that are told the same.
func TestChangeAnswers(t *testing.T) {
	t.Parallel()
	c := newCodec(newMetrics())
	wantSent := func(a *answer, err error, want proto.Message) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		sent, err := c.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sent.Materialize(), encode(t, want)) {
			t.Errorf("%v is sent as %q", want, sent.Materialize())
		}
	}
	var increments changeAnswers[incrementFacts]
	facts := incrementFacts{plusonev1.Outcome_OUTCOME_APPLIED, storeTime}
	first, err := increments.of(facts)
	wantSent(first, err, &plusonev1.IncrementResponse{Outcome: facts.outcome, AsOf: timestamppb.New(storeTime)})
	if again, _ := increments.of(facts); again != first {
		t.Error("the same is encoded again")
	}
	for _, other := range []incrementFacts{
		{plusonev1.Outcome_OUTCOME_DUPLICATE, storeTime}, {plusonev1.Outcome_OUTCOME_APPLIED, storeTime.Add(time.Microsecond)},
	} {
		a, err := increments.of(other)
		wantSent(a, err, &plusonev1.IncrementResponse{Outcome: other.outcome, AsOf: timestamppb.New(other.asOf)})
	}
	var likes changeAnswers[likeFacts]
	for _, f := range []likeFacts{
		{changed: true, counted: true, count: 7, asOf: storeTime},
		{changed: true, counted: true, asOf: storeTime},
		{changed: true, asOf: storeTime},
		{counted: true, count: -1, asOf: storeTime, provisional: true},
	} {
		liked := &plusonev1.LikeResponse{Changed: f.changed, AsOf: timestamppb.New(f.asOf), Provisional: f.provisional}
		unliked := &plusonev1.UnlikeResponse{Changed: f.changed, AsOf: liked.AsOf, Provisional: f.provisional}
		if f.counted {
			liked.Count, unliked.Count = &f.count, &f.count
		}
		a, err := likes.of(f)
		wantSent(a, err, liked)
		wantSent(a, err, unliked)
	}
}
