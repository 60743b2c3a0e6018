package server

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzGet and FuzzBatchGet read at a moment when the cache has counts of a certain age.
func FuzzGet(f *testing.F) {
	for _, seed := range freshnessSeeds {
		addRequest(f, &plusonev1.GetRequest{Key: "k", MaxAge: seed.maxAge, MinAsOf: seed.minAsOf}, seed.age)
	}
	addRequest(f, &plusonev1.GetRequest{Key: " "}, int64(0))
	f.Fuzz(func(t *testing.T, wire []byte, age int64) {
		req := &plusonev1.GetRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			fuzzRead(t, req, []string{req.Key}, age, func(s *counterService) ([]*plusonev1.Count, error) {
				resp, err := getMessage(t.Context(), s, req)
				return []*plusonev1.Count{resp.GetCount()}, err
			})
		})
	})
}

func FuzzBatchGet(f *testing.F) {
	for _, seed := range freshnessSeeds {
		keys := []string{"a", "b", "a"}
		addRequest(f, &plusonev1.BatchGetRequest{Keys: keys, MaxAge: seed.maxAge, MinAsOf: seed.minAsOf}, uint16(1), seed.age)
	}
	addRequest(f, &plusonev1.BatchGetRequest{}, uint16(1), int64(0))
	addRequest(f, &plusonev1.BatchGetRequest{Keys: []string{"k"}}, uint16(1_001), int64(0))
	addRequest(f, &plusonev1.BatchGetRequest{Keys: []string{"k", " "}}, uint16(500), int64(0))
	f.Fuzz(func(t *testing.T, wire []byte, times uint16, age int64) {
		req := &plusonev1.BatchGetRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		req.Keys = repeat(req.Keys, times)
		synctest.Test(t, func(t *testing.T) {
			fuzzRead(t, req, req.Keys, age, func(s *counterService) ([]*plusonev1.Count, error) {
				resp, err := batchGetMessage(t.Context(), s, req)
				return resp.GetCounts(), err
			})
		})
	})
}

// freshnessSeeds are read when the bubble's clock shows the year 2000 and age.
var freshnessSeeds = []struct {
	maxAge  *durationpb.Duration
	minAsOf *timestamppb.Timestamp
	age     int64 // ns
}{
	{},
	{age: 5e9},
	{age: 5e9 + 1},
	{maxAge: &durationpb.Duration{}, age: 1},
	{maxAge: &durationpb.Duration{Seconds: 3600}, age: 3600e9},
	{maxAge: &durationpb.Duration{Seconds: 315_576_000_000}, age: 1e15},
	{maxAge: &durationpb.Duration{Nanos: -1}},
	{minAsOf: &timestamppb.Timestamp{Seconds: 946_684_800}},
	{minAsOf: &timestamppb.Timestamp{Seconds: 946_684_800 + 15}, age: 10e9},
	{minAsOf: &timestamppb.Timestamp{Seconds: 946_684_800 + 10}},
	{minAsOf: &timestamppb.Timestamp{Seconds: 946_684_800 + 10, Nanos: 1}},
	{minAsOf: &timestamppb.Timestamp{Seconds: 253_402_300_800}},
}

// fuzzRead wants each count to be one that the store had, for the key asked for, at a moment that is recent enough. It
// runs in a bubble, whose time is the store's clock.
func fuzzRead(t *testing.T, req interface {
	proto.Message
	GetMaxAge() *durationpb.Duration
	GetMinAsOf() *timestamppb.Timestamp
}, keys []string, age int64, read func(s *counterService) ([]*plusonev1.Count, error),
) {
	t.Helper()
	countAt := func(key string, at time.Time) int64 { return at.UnixNano() + int64(xxhash.Sum64String(key)) }
	store := &scriptedStore{counts: func(_ context.Context, keys []string) []counter.Reading {
		now := time.Now()
		return readAll(keys, func(key string) int64 { return countAt(key, now) }, now)
	}}
	s := newService(t, store, Config{})
	if want := broken(t, req, DefaultMaxDelta); len(want) > 0 {
		_, err := read(s)
		kept(t, req, err, want)
		if n := len(store.readCalls()); n > 0 {
			t.Errorf("the store was read %d times", n)
		}
		return
	}
	if _, err := batchGetMessage(t.Context(), s, &plusonev1.BatchGetRequest{Keys: keys}); err != nil {
		t.Fatal(err)
	}
	if err := sleep(t.Context(), time.Duration(age&math.MaxInt64>>8)); err != nil { // at most 417 days
		t.Fatal(err)
	}
	asked := time.Now()
	counts, err := read(s)
	if ahead := req.GetMinAsOf(); ahead != nil && ahead.AsTime().After(asked.Add(10*time.Second)) {
		wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "MIN_AS_OF_AHEAD", fields: []string{"min_as_of"}})
		return
	}
	if err != nil || len(counts) != len(keys) {
		t.Fatalf("%d counts for %d keys, %v", len(counts), len(keys), err)
	}
	oldest := asked.Add(-5 * time.Second)
	if maxAge := req.GetMaxAge(); maxAge != nil {
		oldest = asked.Add(-maxAge.AsDuration())
	}
	if minAsOf := req.GetMinAsOf(); minAsOf != nil && minAsOf.AsTime().After(oldest) {
		oldest = minAsOf.AsTime()
	}
	for i, c := range counts {
		asOf := c.AsOf.AsTime()
		if c.Key != keys[i] || c.Count != countAt(c.Key, asOf) || c.Stale || asOf.Before(oldest) || asOf.After(time.Now()) {
			t.Errorf("%v is answered with %v, asked at %v", req, c, asked)
		}
	}
}

func FuzzBatchGetLikes(f *testing.F) {
	addRequest(f, &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k", "l", "k"}}, uint16(1))
	addRequest(f, &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k", " "}}, uint16(12))
	addRequest(f, &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k"}}, uint16(1_001))
	addRequest(f, &plusonev1.BatchGetLikesRequest{Actor: strings.Repeat("a", 129)}, uint16(1))
	type question struct {
		actor string
		keys  []string
	}
	var asked []question
	s := newService(f, &scriptedStore{likes: func(_ context.Context, actor string, keys []string) ([]counter.LikeState, error) {
		asked = append(asked, question{actor, keys})
		states := make([]counter.LikeState, len(keys))
		for i, key := range keys {
			states[i] = counter.LikeState{Liked: len(key)%2 == 1, At: storeTime.Add(time.Duration(i))}
		}
		return states, nil
	}}, Config{})
	f.Fuzz(func(t *testing.T, wire []byte, times uint16) {
		req := &plusonev1.BatchGetLikesRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		req.Keys = repeat(req.Keys, times)
		asked = nil
		resp, err := s.BatchGetLikes(t.Context(), req)
		if !kept(t, req, err, broken(t, req, DefaultMaxDelta)) {
			if len(asked) > 0 {
				t.Errorf("the store was asked for %+v", asked)
			}
			return
		}
		if len(asked) != 1 || asked[0].actor != req.Actor || !slices.Equal(asked[0].keys, req.Keys) || len(resp.Likes) != len(req.Keys) {
			t.Fatalf("the store was asked for %+v, the answer is %v", asked, resp)
		}
		for i, l := range resp.Likes {
			if l.Key != req.Keys[i] || l.Liked != (len(l.Key)%2 == 1) || l.Liked != (l.LikedAt != nil) ||
				l.Liked && !l.LikedAt.AsTime().Equal(storeTime.Add(time.Duration(i))) {
				t.Errorf("like %d of %v is %v", i, req, l)
			}
		}
	})
}
