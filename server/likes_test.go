package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// likeStore acknowledges every like at the time of the bubble and counts it, and reads as counts says, or all
// likes so far, at that time.
func likeStore(counts func(ctx context.Context, keys []string) []counter.Reading) *scriptedStore {
	var likes atomic.Int64
	return &scriptedStore{
		apply: func(_ context.Context, c counter.Change) (counter.Receipt, error) {
			if c.Like == counter.SetLiked {
				likes.Add(1)
			} else {
				likes.Add(-1)
			}
			return counter.Receipt{Outcome: counter.Applied, AsOf: time.Now(), Changed: true}, nil
		},
		counts: func(ctx context.Context, keys []string) []counter.Reading {
			if counts != nil {
				return counts(ctx, keys)
			}
			return readAll(keys, func(string) int64 { return likes.Load() }, time.Now())
		},
	}
}

func like(t *testing.T, s *counterService, req *plusonev1.LikeRequest) *plusonev1.LikeResponse {
	t.Helper()
	resp, err := likeMessage(t.Context(), s, req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestLikeReachesStore(t *testing.T) {
	t.Parallel()
	receipt := counter.Receipt{Outcome: counter.Applied, AsOf: storeTime, Changed: true}
	store := &scriptedStore{apply: func(context.Context, counter.Change) (counter.Receipt, error) { return receipt, nil }}
	r := start(t, store, Config{})

	liked, err := r.client.Like(t.Context(), &plusonev1.LikeRequest{Key: "posts/1", Actor: "ann", RequestId: uuidV7})
	if err != nil {
		t.Fatal(err)
	}
	if !liked.Changed || liked.Provisional || liked.GetCount() != 7 || !liked.AsOf.AsTime().Equal(storeTime) {
		t.Errorf("got %v", liked)
	}
	c := store.lastChange(t)
	if !slices.Equal(c.Entries, []counter.Entry{{Key: "posts/1"}}) || c.Actor != "ann" || c.Like != counter.SetLiked ||
		c.OncePer != 0 || c.RequestID != counter.ParseRequestID(uuidV7) {
		t.Errorf("the store saw %+v", c)
	}

	// A repetition tells what the first call did.
	receipt = counter.Receipt{Outcome: counter.Duplicate, AsOf: storeTime, Changed: true, Provisional: true}
	unliked, err := r.client.Unlike(t.Context(), &plusonev1.UnlikeRequest{Key: "posts/1", Actor: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if !unliked.Changed || !unliked.Provisional || unliked.GetCount() != 7 || !unliked.AsOf.AsTime().Equal(storeTime) {
		t.Errorf("got %v", unliked)
	}
	if c := store.lastChange(t); c.Like != counter.SetUnliked || c.Actor != "ann" || !c.RequestID.IsZero() {
		t.Errorf("the store saw %+v", c)
	}

	receipt = counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}
	if liked, err := r.client.Like(t.Context(), &plusonev1.LikeRequest{Key: "k", Actor: "a"}); err != nil || liked.Changed || liked.Provisional {
		t.Errorf("a like that changes nothing: %v, %v", liked, err)
	}
	for _, receipt.Outcome = range []counter.Outcome{0, counter.AlreadyCounted} {
		_, err = r.client.Like(t.Context(), &plusonev1.LikeRequest{Key: "k", Actor: "a"})
		wantFailure(t, err, failure{code: codes.Internal, reason: "INTERNAL"})
	}
}

func TestLikeChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	long := strings.Repeat("k", 257)
	for name, tc := range map[string]struct {
		key, actor, id string
		fields         []string
	}{
		"plain":      {key: "k", actor: "a"},
		"longest":    {key: long[:256], actor: long[:128], id: long[:128]},
		"no key":     {actor: "a", fields: []string{"key"}},
		"long key":   {key: long, actor: "a", fields: []string{"key"}},
		"no actor":   {key: "k", fields: []string{"actor"}},
		"long actor": {key: "k", actor: long[:129], fields: []string{"actor"}},
		"bad actor":  {key: "k", actor: "a b", fields: []string{"actor"}},
		"bad id":     {key: "k", actor: "a", id: "a\t", fields: []string{"request_id"}},
		"everything": {key: " ", id: long, fields: []string{"key", "actor", "request_id"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, likeErr := r.client.Like(t.Context(), &plusonev1.LikeRequest{Key: tc.key, Actor: tc.actor, RequestId: tc.id})
			_, unlikeErr := r.client.Unlike(t.Context(), &plusonev1.UnlikeRequest{Key: tc.key, Actor: tc.actor, RequestId: tc.id})
			for _, err := range []error{likeErr, unlikeErr} {
				if tc.fields != nil {
					wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	if n := value(t, r.server.cache.metrics.invalid.WithLabelValues("actor")); n != 6 {
		t.Errorf("%v violations of actor were counted", n)
	}
}

// The errors are those of any change, save that a like in doubt may be repeated without a request id.
func TestLikeErrors(t *testing.T) {
	t.Parallel()
	var storeErr error
	r := start(t, &scriptedStore{apply: func(context.Context, counter.Change) (counter.Receipt, error) {
		return counter.Receipt{}, storeErr
	}}, Config{})
	unknown := failure{code: codes.Unavailable, reason: "OUTCOME_UNKNOWN", retry: true}
	for _, tc := range []struct {
		err  error
		want failure
	}{
		{counter.ErrRequestIDReused, failure{code: codes.AlreadyExists, reason: "REQUEST_ID_REUSED"}},
		{counter.ErrRequestIDExpired, failure{code: codes.FailedPrecondition, reason: "REQUEST_ID_EXPIRED"}},
		{counter.ErrOverflow, failure{code: codes.OutOfRange, reason: "TOTAL_OVERFLOW"}},
		{counter.ErrUnavailable, failure{code: codes.Unavailable, reason: "STORE_UNAVAILABLE", retry: true}},
		{counter.ErrFull, failure{code: codes.ResourceExhausted, reason: "STORE_FULL", retry: true}},
		{counter.ErrInDoubt, unknown},
		{context.DeadlineExceeded, unknown},
		{errDriver, failure{code: codes.Internal, reason: "INTERNAL"}},
	} {
		storeErr = fmt.Errorf("%w: %w", tc.err, errDriver)
		_, withID := r.client.Like(t.Context(), &plusonev1.LikeRequest{Key: "k", Actor: "a", RequestId: "id"})
		wantFailure(t, withID, tc.want)
		_, withoutID := r.client.Unlike(t.Context(), &plusonev1.UnlikeRequest{Key: "k", Actor: "a"})
		wantFailure(t, withoutID, tc.want)
		if tc.want.reason == "OUTCOME_UNKNOWN" {
			if !strings.Contains(withID.Error(), "with the same request_id") {
				t.Errorf("with an id: %v", withID)
			}
			if !strings.Contains(withoutID.Error(), "repeat the call at once") {
				t.Errorf("without an id: %v", withoutID)
			}
		}
		for _, err := range []error{withID, withoutID} {
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("driver text reached the caller: %v", err)
			}
		}
	}
}

// The count of an answer is read after the like, for each like anew, and is in the cache from then on.
func TestLikeCountIsFreshAndCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := likeStore(nil)
		s := newService(t, store, Config{})
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 0, false)
		for i := range int64(3) {
			resp := like(t, s, &plusonev1.LikeRequest{Key: "k", Actor: fmt.Sprint("user:", i)})
			if resp.Count == nil || *resp.Count != i+1 {
				t.Errorf("like %d: got %v", i, resp)
			}
			reads := len(store.readCalls())
			wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), i+1, false)
			wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: resp.AsOf}), i+1, false)
			if n := len(store.readCalls()); n != reads {
				t.Errorf("the cache did not learn the count: %d reads", n-reads)
			}
		}
		resp, err := unlikeMessage(t.Context(), s, &plusonev1.UnlikeRequest{Key: "k", Actor: "user:0"})
		if err != nil || resp.GetCount() != 2 {
			t.Errorf("unlike: %v, %v", resp, err)
		}
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 2, false)
	})
}

// A count that the store has read along with a like is answered and cached, and no other one is read. All likes of a batch have
// the same one, which never takes the place of a newer one.
func TestLikeCountAlong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, start := likeStore(nil), time.Now()
		var count *counter.Count
		var sent time.Time
		store.apply = func(_ context.Context, c counter.Change) (counter.Receipt, error) {
			if !c.WantCount {
				t.Error("the count is not asked for")
			}
			return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime, Count: count, Batch: counter.Batch{Sent: sent}}, nil
		}
		s := newService(t, store, Config{})
		answers := func(value int64, later, want time.Duration) {
			t.Helper()
			<-time.After(time.Millisecond)
			count, sent = &counter.Count{Key: "k", Value: value, Likes: 3, AsOf: storeTime.Add(later)}, time.Now()
			for range 3 {
				resp := like(t, s, &plusonev1.LikeRequest{Key: "k", Actor: "a"})
				if resp.Count == nil || *resp.Count != value || !resp.AsOf.AsTime().Equal(storeTime.Add(want)) {
					t.Errorf("got %v", resp)
				}
			}
		}
		cached := func(value int64, minAsOf time.Duration) *entry {
			t.Helper()
			c := get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(storeTime.Add(minAsOf))})
			wantCount(t, c, value, false)
			return s.cache.lastKnown("k")
		}
		answers(7, time.Second, time.Second)
		first := cached(7, time.Second)
		if first.count.Likes != 3 || first.began != sent.Sub(s.cache.start) || time.Since(start) < first.ended {
			t.Errorf("cached %+v, sent %v after the start", first, sent.Sub(start))
		}
		answers(8, 2*time.Second, 2*time.Second)
		cached(8, 2*time.Second)
		// An answer that comes late.
		sent = sent.Add(-time.Millisecond)
		s.cache.keep(&counter.Count{Key: "k", Value: 7, AsOf: storeTime.Add(time.Second)}, sent)
		cached(8, 2*time.Second)
		// The count is from the microsecond of the like, whose moment is rounded up.
		answers(9, -time.Microsecond, 0)
		if n := len(store.readCalls()); n != 0 {
			t.Errorf("%d reads", n)
		}
	})
}

// The moment of an answer is the later one of the like's and the count's, so that neither is unread later.
func TestLikeAsOf(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ counted, want time.Duration }{
		"count later":   {counted: time.Second, want: time.Second},
		"count earlier": {counted: -time.Microsecond, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var reads atomic.Int64
				s := newService(t, &scriptedStore{
					apply: func(context.Context, counter.Change) (counter.Receipt, error) {
						return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}, nil
					},
					counts: func(_ context.Context, keys []string) []counter.Reading {
						n := reads.Add(1)
						asOf := storeTime.Add(tc.counted)
						if n > 1 {
							asOf = storeTime.Add(time.Minute)
						}
						return readAll(keys, func(string) int64 { return n }, asOf)
					},
				}, Config{})
				resp := like(t, s, &plusonev1.LikeRequest{Key: "k", Actor: "a"})
				if resp.GetCount() != 1 || !resp.AsOf.AsTime().Equal(storeTime.Add(tc.want)) {
					t.Errorf("got %v", resp)
				}
				// Whatever the cache holds, it is no older than what the caller asks for.
				c := get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: resp.AsOf, MaxAge: durationpb.New(time.Hour)})
				if c.Stale || c.AsOf.AsTime().Before(resp.AsOf.AsTime()) {
					t.Errorf("read of one's own write: %v", c)
				}
			})
		})
	}
}

// A like is acknowledged whatever becomes of its count, and in time for its caller.
func TestLikeWithoutCount(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context, keys []string) []counter.Reading {
		<-ctx.Done()
		return failAll(keys, ctx.Err())
	}
	fail := func(err error) func(context.Context, []string) []counter.Reading {
		return func(_ context.Context, keys []string) []counter.Reading { return failAll(keys, err) }
	}
	for name, tc := range map[string]struct {
		counts         func(context.Context, []string) []counter.Reading
		apply          time.Duration // how long the like takes
		deadline, took time.Duration
		requestTimeout time.Duration
		reads          int
	}{
		"unavailable":         {counts: fail(counter.ErrUnavailable), reads: 1},
		"overloaded":          {counts: fail(counter.ErrOverloaded), reads: 1},
		"broken":              {counts: fail(errDriver), reads: 1},
		"too few answers":     {counts: func(context.Context, []string) []counter.Reading { return nil }, reads: 1},
		"panic":               {counts: func(context.Context, []string) []counter.Reading { panic("hunter2") }, reads: 1},
		"slow":                {counts: hang, took: maxCountWait, reads: 1},
		"slow, far deadline":  {counts: hang, deadline: time.Hour, took: maxCountWait, reads: 1},
		"slow, near deadline": {counts: hang, deadline: 300 * time.Millisecond, took: 270 * time.Millisecond, reads: 1},
		"slow after a slow like": {
			counts: hang, apply: 800 * time.Millisecond, deadline: time.Second, took: 900 * time.Millisecond, reads: 1,
		},
		"no time left": {
			counts: hang, apply: 950 * time.Millisecond, deadline: time.Second, took: 950 * time.Millisecond, reads: 0,
		},
		"short request timeout": {counts: hang, requestTimeout: 100 * time.Millisecond, took: 100 * time.Millisecond, reads: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := likeStore(tc.counts)
				apply := store.apply
				store.apply = func(ctx context.Context, c counter.Change) (counter.Receipt, error) {
					_ = sleep(context.WithoutCancel(ctx), tc.apply)
					return apply(ctx, c)
				}
				s := newService(t, store, Config{RequestTimeout: tc.requestTimeout})
				// A last known value is not the count with this like.
				s.cache.put(entryOf(t, "k", counter.Count{Value: 99, AsOf: time.Now()}, 0, 0))
				ctx, cancel := t.Context(), func() {}
				if tc.deadline > 0 {
					ctx, cancel = context.WithTimeout(ctx, tc.deadline)
				}
				defer cancel()
				began := time.Now()
				resp, err := likeMessage(ctx, s, &plusonev1.LikeRequest{Key: "k", Actor: "a"})
				if err != nil {
					t.Fatal(err)
				}
				if resp.Count != nil || !resp.Changed || !resp.AsOf.AsTime().Equal(began.Add(tc.apply)) {
					t.Errorf("got %v", resp)
				}
				// Deadlines that share a timer pass up to 4 ms early.
				if took := time.Since(began); took > tc.took || took < tc.took-4*time.Millisecond {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				synctest.Wait() // for a load that should not have begun
				if n := len(store.readCalls()); n != tc.reads {
					t.Errorf("%d reads, want %d", n, tc.reads)
				}
				if n := value(t, s.metrics.stale); n != 0 {
					t.Errorf("%v stale answers counted", n)
				}
			})
		})
	}
}

func TestBatchGetLikes(t *testing.T) {
	t.Parallel()
	since := map[string]time.Time{"a": storeTime, "c": storeTime.Add(-time.Hour)}
	var askedOf string
	r := start(t, &scriptedStore{likes: func(_ context.Context, actor string, keys []string) ([]counter.LikeState, error) {
		askedOf = actor
		states := make([]counter.LikeState, len(keys))
		for i, key := range keys {
			at, liked := since[key]
			if !liked {
				at = storeTime.Add(-time.Minute) // since when it is not liked, which is not told
			}
			states[i] = counter.LikeState{Liked: liked, At: at}
		}
		return states, nil
	}}, Config{})
	resp, err := r.client.BatchGetLikes(t.Context(), &plusonev1.BatchGetLikesRequest{Actor: "ann", Keys: []string{"c", "b", "a", "c"}})
	if err != nil {
		t.Fatal(err)
	}
	if askedOf != "ann" {
		t.Errorf("the store was asked about %q", askedOf)
	}
	var got []string
	for _, l := range resp.Likes {
		at := "never"
		if l.LikedAt != nil {
			at = l.LikedAt.AsTime().Sub(storeTime).String()
		}
		got = append(got, fmt.Sprint(l.Key, l.Liked, at))
	}
	if want := []string{"ctrue-1h0m0s", "bfalsenever", "atrue0s", "ctrue-1h0m0s"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBatchGetLikesChecks(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	for name, tc := range map[string]struct {
		req    *plusonev1.BatchGetLikesRequest
		fields []string
	}{
		"most keys":     {req: &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: slices.Repeat([]string{"k"}, 1000)}},
		"no actor":      {&plusonev1.BatchGetLikesRequest{Keys: []string{"k"}}, []string{"actor"}},
		"bad actor":     {&plusonev1.BatchGetLikesRequest{Actor: strings.Repeat("a", 129), Keys: []string{"k"}}, []string{"actor"}},
		"no keys":       {&plusonev1.BatchGetLikesRequest{Actor: "a"}, []string{"keys"}},
		"too many keys": {&plusonev1.BatchGetLikesRequest{Actor: "a", Keys: slices.Repeat([]string{"k"}, 1001)}, []string{"keys"}},
		"bad key":       {&plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k", "a b"}}, []string{"keys[1]"}},
		"everything":    {&plusonev1.BatchGetLikesRequest{}, []string{"actor", "keys"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.BatchGetLikes(t.Context(), tc.req)
			if tc.fields != nil {
				wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBatchGetLikesErrors(t *testing.T) {
	t.Parallel()
	unavailable := failure{code: codes.Unavailable, reason: "STORE_UNAVAILABLE", retry: true}
	for name, tc := range map[string]struct {
		likes func(context.Context, string, []string) ([]counter.LikeState, error)
		took  time.Duration
		want  failure
	}{
		"unavailable": {
			likes: func(context.Context, string, []string) ([]counter.LikeState, error) {
				return nil, fmt.Errorf("%w: %w", counter.ErrUnavailable, errDriver)
			},
			want: unavailable,
		},
		"slow": {
			likes: func(ctx context.Context, _ string, _ []string) ([]counter.LikeState, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			took: DefaultRequestTimeout,
			want: unavailable,
		},
		"too few answers": {
			likes: func(context.Context, string, []string) ([]counter.LikeState, error) {
				return make([]counter.LikeState, 1), nil
			},
			want: failure{code: codes.Internal, reason: "INTERNAL"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newService(t, &scriptedStore{likes: tc.likes}, Config{})
				began := time.Now()
				resp, err := s.BatchGetLikes(t.Context(), &plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k", "l"}})
				wantFailure(t, err, tc.want)
				if resp != nil {
					t.Errorf("answered %v", resp)
				}
				if took := time.Since(began); took != tc.took {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}
