package server

import (
	"context"
	"fmt"
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

// The targets below call the services with whatever decodes to a request. One that keeps the contract (broken) reaches
// the store as it says; any other is refused for the very fields that break it, and the store is not asked.

// addRequest adds a request as a seed, with the target's further arguments.
func addRequest(f *testing.F, req proto.Message, args ...any) {
	f.Helper()
	wire, err := proto.Marshal(req)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]any{wire}, args...)...)
}

// kept reports whether a request keeps the contract, after it has compared the error of its call with that.
func kept(t *testing.T, req proto.Message, err error, broken []string) bool {
	t.Helper()
	if len(broken) == 0 {
		if err != nil {
			t.Fatalf("%v was refused: %v", req, err)
		}
		return true
	}
	refusal := failureOf(t, err)
	if refusal.code != codes.InvalidArgument || refusal.reason != "INVALID_REQUEST" || refusal.retry {
		t.Errorf("%v was refused as %+v", req, refusal)
	}
	for i, field := range refusal.fields {
		if !slices.Contains(broken, field) || slices.Contains(refusal.fields[:i], field) || !hasField(req.ProtoReflect(), field) {
			t.Errorf("%v was refused for %q, and breaks the contract by %q", req, refusal.fields, broken)
		}
	}
	if n := min(len(broken), maxViolations); len(refusal.fields) != n {
		t.Errorf("%v was refused for %q, and breaks the contract by %q", req, refusal.fields, broken)
	}
	return false
}

// takeChanges returns the changes that the store has seen, and forgets all that it has seen.
func (s *scriptedStore) takeChanges() []counter.Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := s.changes
	s.changes, s.reads = nil, nil
	return changes
}

// wantChange wants the store to have seen one change, or none if the request was refused.
func wantChange(t *testing.T, got []counter.Change, kept bool, want counter.Change) {
	t.Helper()
	switch {
	case !kept && len(got) > 0:
		t.Errorf("the store saw %+v", got)
	case kept && (len(got) != 1 || !slices.Equal(got[0].Entries, want.Entries) || got[0].RequestID != want.RequestID ||
		got[0].Actor != want.Actor || got[0].OncePer != want.OncePer || got[0].Like != want.Like):
		t.Errorf("the store saw %+v, want %+v", got, want)
	}
}

func FuzzIncrement(f *testing.F) {
	day := durationpb.New(24 * time.Hour)
	for _, req := range []*plusonev1.IncrementRequest{
		{Key: "k"},
		{Key: "k", Delta: proto.Int64(3), RequestId: "0190b5f0-0000-7000-8000-000000000000", Actor: "a", OncePer: day},
		{Key: "views/é", Delta: proto.Int64(-1e12), RequestId: "r", Actor: "a", OncePer: durationpb.New(7 * 24 * time.Hour)},
		{Key: "k", Actor: "a", OncePer: &durationpb.Duration{Nanos: 1e6}},
		{Key: "k", Actor: "a", OncePer: &durationpb.Duration{Seconds: 7 * 24 * 3600, Nanos: 1e6}},
		{Key: "a\u00a0b", Delta: proto.Int64(0), OncePer: &durationpb.Duration{Seconds: 1, Nanos: -1}},
		{Key: strings.Repeat("k", 257), Delta: proto.Int64(1e12 + 1), RequestId: strings.Repeat("r", 129), Actor: strings.Repeat("a", 129)},
	} {
		addRequest(f, req)
	}
	store := &scriptedStore{}
	s := newService(f, store, Config{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		req := &plusonev1.IncrementRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		resp, err := s.Increment(t.Context(), req)
		keeps := kept(t, req, err, broken(t, req, DefaultMaxDelta))
		delta := int64(1)
		if req.Delta != nil {
			delta = *req.Delta
		}
		wantChange(t, store.takeChanges(), keeps, counter.Change{
			Entries: []counter.Entry{{Key: req.Key, Delta: delta}}, RequestID: counter.ParseRequestID(req.RequestId),
			Actor: req.Actor, OncePer: time.Duration(req.OncePer.GetSeconds()*1e9 + int64(req.OncePer.GetNanos())),
		})
		if keeps && (resp.Outcome != plusonev1.Outcome_OUTCOME_APPLIED || !resp.AsOf.AsTime().Equal(storeTime)) {
			t.Errorf("got %v", resp)
		}
	})
}

// FuzzBatchIncrement repeats what decodes up to 2^16 times, and allows any delta if told to, to get at all the limits.
func FuzzBatchIncrement(f *testing.F) {
	e := func(key string, delta int64) *plusonev1.BatchEntry {
		return &plusonev1.BatchEntry{Key: key, Delta: delta}
	}
	for _, seed := range []struct {
		entries []*plusonev1.BatchEntry
		times   uint16
		any     bool
	}{
		{nil, 1, false},
		{[]*plusonev1.BatchEntry{e("a", 1), e("b", -1), e("a", 1e12)}, 1, false},
		{[]*plusonev1.BatchEntry{e("a", 1), e("a", -1)}, 5_000, false},
		{[]*plusonev1.BatchEntry{e("a", 1)}, 10_001, false},
		{[]*plusonev1.BatchEntry{e("a", 1e12+1), e("", 1)}, 7, false},
		{[]*plusonev1.BatchEntry{e("a", math.MaxInt64), e("b", 1), e("a", 1)}, 1, true},
		{[]*plusonev1.BatchEntry{e("a", -math.MaxInt64), e("a", -1)}, 1, true},
	} {
		addRequest(f, &plusonev1.BatchIncrementRequest{Entries: seed.entries, RequestId: uuidV7}, seed.times, seed.any)
	}
	store := &scriptedStore{}
	careful, generous := newService(f, store, Config{}), newService(f, store, Config{MaxDelta: math.MaxInt64})
	f.Fuzz(func(t *testing.T, wire []byte, times uint16, anyDelta bool) {
		req := &plusonev1.BatchIncrementRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		req.Entries = repeat(req.Entries, times)
		s := careful
		if anyDelta {
			s = generous
		}
		_, err := s.BatchIncrement(t.Context(), req)
		keeps := kept(t, req, err, broken(t, req, s.config.MaxDelta))
		var sums []counter.Entry
		at := map[string]int{}
		for _, e := range req.Entries {
			if _, there := at[e.GetKey()]; !there {
				at[e.GetKey()] = len(sums)
				sums = append(sums, counter.Entry{Key: e.GetKey()})
			}
			sums[at[e.GetKey()]].Delta += e.GetDelta()
		}
		wantChange(t, store.takeChanges(), keeps, counter.Change{Entries: sums, RequestID: counter.ParseRequestID(req.RequestId)})
	})
}

// repeat repeats a list, up to a length that is beyond all limits.
func repeat[T any](list []T, times uint16) []T {
	if len(list) == 0 {
		return list
	}
	return slices.Repeat(list, min(int(times), 12_000/len(list)+1))
}

func FuzzLike(f *testing.F) {
	for _, req := range []*plusonev1.LikeRequest{
		{Key: "k", Actor: "a", RequestId: uuidV7},
		{Key: "posts/日本語", Actor: "user:é", RequestId: "r"},
		{Key: "k"},
		{Actor: "a b", RequestId: "\u2028"},
		{Key: strings.Repeat("k", 257), Actor: strings.Repeat("a", 129), RequestId: strings.Repeat("r", 129)},
	} {
		addRequest(f, req)
	}
	store := &scriptedStore{}
	s := newService(f, store, Config{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		req := &plusonev1.LikeRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		unlike := &plusonev1.UnlikeRequest{Key: req.Key, Actor: req.Actor, RequestId: req.RequestId}
		want := counter.Change{
			Entries: []counter.Entry{{Key: req.Key}}, RequestID: counter.ParseRequestID(req.RequestId), Actor: req.Actor,
		}
		liked, err := s.Like(t.Context(), req)
		keeps := kept(t, req, err, broken(t, req, DefaultMaxDelta))
		want.Like = counter.SetLiked
		wantChange(t, store.takeChanges(), keeps, want)
		unliked, err := s.Unlike(t.Context(), unlike)
		kept(t, unlike, err, broken(t, unlike, DefaultMaxDelta))
		want.Like = counter.SetUnliked
		wantChange(t, store.takeChanges(), keeps, want)
		if keeps && (liked.GetCount() != int64(len(req.Key)) || unliked.GetCount() != int64(len(req.Key))) {
			t.Errorf("got %v and %v", liked, unliked)
		}
	})
}

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
				resp, err := s.Get(t.Context(), req)
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
				resp, err := s.BatchGet(t.Context(), req)
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
	if _, err := s.BatchGet(t.Context(), &plusonev1.BatchGetRequest{Keys: keys}); err != nil {
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

// FuzzLists asks for both lists of the same name. The token is as it comes, or one with a checksum that is right.
func FuzzLists(f *testing.F) {
	at := storeTime.UnixMicro()
	f.Add("k", int32(0), "", false, int64(0), "", uint16(0))
	f.Add("k", int32(1000), "", false, int64(0), "", uint16(1001))
	f.Add("k", int32(1), pageToken(likersOfKey, "k", counter.LikeCursor{At: storeTime, Name: "a"}), false, int64(0), "", uint16(2))
	f.Add("k", int32(1), pageToken(likedByActor, "k", counter.LikeCursor{At: storeTime, Name: "a"})+"\n", false, int64(0), "", uint16(2))
	f.Add("k", int32(2), "", true, at, "n", uint16(3))
	f.Add("k", int32(2), "", true, int64(-1), "n", uint16(3))
	f.Add("k", int32(2), "", true, int64(253_402_300_800e6), "n", uint16(3))
	f.Add("k", int32(2), "", true, at, strings.Repeat("n", 129), uint16(3))
	f.Add(" ", int32(-1), "!", false, int64(0), "", uint16(1))
	f.Add("k", int32(1001), "", true, at, "\xff", uint16(1))
	config, err := Config{}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	m := newMetrics()
	f.Fuzz(func(t *testing.T, of string, size int32, token string, made bool, at int64, name string, there uint16) {
		for _, l := range []list{likersOfKey, likedByActor} {
			reports := &longReports{there: int(there)}
			s := &reportService{reports: reports, config: config, metrics: m}
			if made {
				token = pageToken(l, of, counter.LikeCursor{At: time.UnixMicro(at), Name: name})
			}
			req, names, next, err := listPage(t, s, l, of, size, token)
			if !kept(t, req, err, broken(t, req, DefaultMaxDelta)) {
				if len(reports.asked) > 0 {
					t.Errorf("%v: the ledger was asked for %+v", req, reports.asked)
				}
				continue
			}
			if size == 0 {
				size = 100
			}
			q := reports.asked[0]
			if len(reports.asked) != 1 || q.list != l || q.of != of || q.limit != int(size)+1 {
				t.Errorf("%v: the ledger was asked for %+v", req, reports.asked)
			}
			if token == "" && q.after != (counter.LikeCursor{}) || token != "" && pageToken(l, of, q.after) != token {
				t.Errorf("%v: the ledger was asked for what comes after %+v", req, q.after)
			}
			if len(names) != min(int(size), int(there)) || (next != "") != (int(there) > int(size)) {
				t.Errorf("%v: %d likes and the token %q, where there are %d", req, len(names), next, there)
			}
			if next == "" {
				continue
			}
			if req, _, _, err = listPage(t, s, l, of, size, next); err != nil {
				t.Fatalf("%v: %v", req, err)
			}
			if after := reports.asked[1].after; after.Name != names[len(names)-1] || !after.At.Equal(reports.at(len(names)-1)) {
				t.Errorf("%v: the next page comes after %+v, not after the last of %q", req, after, names)
			}
		}
	})
}

// listPage asks for a page of one of the lists.
func listPage(t *testing.T, s *reportService, l list, of string, size int32, token string,
) (req proto.Message, names []string, next string, err error) {
	t.Helper()
	if l == likersOfKey {
		r := &plusonev1.ListLikersRequest{Key: of, PageSize: size, PageToken: token}
		resp, err := s.ListLikers(t.Context(), r)
		for _, like := range resp.GetLikers() {
			names = append(names, like.Actor)
		}
		return r, names, resp.GetNextPageToken(), err
	}
	r := &plusonev1.ListLikedRequest{Actor: of, PageSize: size, PageToken: token}
	resp, err := s.ListLiked(t.Context(), r)
	for _, like := range resp.GetLiked() {
		names = append(names, like.Key)
	}
	return r, names, resp.GetNextPageToken(), err
}

// longReports is a ledger in which so many likes are there behind any place of any list.
type longReports struct {
	there int
	asked []listQuery
}

type listQuery struct {
	list  list
	of    string
	after counter.LikeCursor
	limit int
}

func (r *longReports) at(i int) time.Time { return storeTime.Add(-time.Duration(i) * time.Microsecond) }

func (r *longReports) list(q listQuery) ([]counter.Liked, error) {
	r.asked = append(r.asked, q)
	likes := make([]counter.Liked, min(q.limit, r.there))
	for i := range likes {
		likes[i] = counter.Liked{Pair: counter.Pair{Key: fmt.Sprint("n", i), Actor: fmt.Sprint("n", i)}, At: r.at(i)}
	}
	return likes, nil
}

func (r *longReports) ListLikers(_ context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(listQuery{likersOfKey, key, after, limit})
}

func (r *longReports) ListLiked(_ context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(listQuery{likedByActor, actor, after, limit})
}
