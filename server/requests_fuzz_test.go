package server

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

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
		resp, err := incrementMessage(t.Context(), s, req)
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
		liked, err := likeMessage(t.Context(), s, req)
		keeps := kept(t, req, err, broken(t, req, DefaultMaxDelta))
		want.Like = counter.SetLiked
		wantChange(t, store.takeChanges(), keeps, want)
		unliked, err := unlikeMessage(t.Context(), s, unlike)
		kept(t, unlike, err, broken(t, unlike, DefaultMaxDelta))
		want.Like = counter.SetUnliked
		wantChange(t, store.takeChanges(), keeps, want)
		if keeps && (liked.GetCount() != int64(len(req.Key)) || unliked.GetCount() != int64(len(req.Key))) {
			t.Errorf("got %v and %v", liked, unliked)
		}
	})
}
