package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

const uuidV7 = "0190B5F0-0000-7000-8000-000000000000"

func TestIncrementReachesStore(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	r := start(t, store, Config{})

	resp, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{
		Key: "k", RequestId: uuidV7, Actor: "a", OncePer: durationpb.New(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Outcome != plusonev1.Outcome_OUTCOME_APPLIED || !resp.AsOf.AsTime().Equal(storeTime) {
		t.Errorf("got %v", resp)
	}
	c := store.lastChange(t)
	if !slices.Equal(c.Entries, []counter.Entry{{Key: "k", Delta: 1}}) || c.Actor != "a" || c.OncePer != time.Hour ||
		c.RequestID != counter.ParseRequestID(uuidV7) {
		t.Errorf("the store saw %+v", c)
	}

	if _, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(-7)}); err != nil {
		t.Fatal(err)
	}
	c = store.lastChange(t)
	if c.Entries[0].Delta != -7 || !c.RequestID.IsZero() || c.OncePer != 0 {
		t.Errorf("the store saw %+v", c)
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	var outcome counter.Outcome
	store := &scriptedStore{apply: func(context.Context, counter.Change) (counter.Receipt, error) {
		return counter.Receipt{Outcome: outcome, AsOf: storeTime}, nil
	}}
	s := newService(t, store, Config{})
	for from, want := range map[counter.Outcome]plusonev1.Outcome{
		counter.Applied:        plusonev1.Outcome_OUTCOME_APPLIED,
		counter.Duplicate:      plusonev1.Outcome_OUTCOME_DUPLICATE,
		counter.AlreadyCounted: plusonev1.Outcome_OUTCOME_ALREADY_COUNTED,
	} {
		outcome = from
		resp, err := incrementMessage(t.Context(), s, &plusonev1.IncrementRequest{Key: "k"})
		if err != nil || resp.Outcome != want {
			t.Errorf("outcome %d: %v, %v", from, resp, err)
		}
		batch, err := s.BatchIncrement(t.Context(), &plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{{Key: "k", Delta: 1}}})
		if err != nil || batch.Outcome != want {
			t.Errorf("outcome %d of a batch: %v, %v", from, batch, err)
		}
	}
	outcome = 0
	_, err := incrementMessage(t.Context(), s, &plusonev1.IncrementRequest{Key: "k"})
	wantFailure(t, err, failure{code: codes.Internal, reason: "INTERNAL"})
}

func TestBatchSumsDuplicates(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	r := start(t, store, Config{})
	resp, err := r.client.BatchIncrement(t.Context(), &plusonev1.BatchIncrementRequest{
		RequestId: "r", Entries: []*plusonev1.BatchEntry{
			{Key: "a", Delta: 1}, {Key: "b", Delta: 2}, {Key: "gone", Delta: 5}, {Key: "a", Delta: 10}, {Key: "gone", Delta: -5},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Outcome != plusonev1.Outcome_OUTCOME_APPLIED || !resp.AsOf.AsTime().Equal(storeTime) {
		t.Errorf("got %v", resp)
	}
	c := store.lastChange(t)
	if !slices.Equal(c.Entries, []counter.Entry{{Key: "a", Delta: 11}, {Key: "b", Delta: 2}, {Key: "gone"}}) || c.RequestID != counter.ParseRequestID("r") {
		t.Errorf("the store saw %+v", c)
	}
}

func TestBatchGetAnswersInOrder(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	r := start(t, store, Config{})
	if _, err := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "bb"}); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.BatchGet(t.Context(), &plusonev1.BatchGetRequest{Keys: []string{"ccc", "a", "bb", "ccc", "a"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range resp.Counts {
		got = append(got, fmt.Sprintf("%s=%d %v %v", c.Key, c.Count, c.Stale, c.AsOf.AsTime().Equal(storeTime)))
	}
	want := []string{"ccc=3 false true", "a=1 false true", "bb=2 false true", "ccc=3 false true", "a=1 false true"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if reads := store.readCalls(); len(reads) != 2 || !slices.Equal(reads[1], []string{"ccc", "a"}) {
		t.Errorf("the store was asked %v", reads)
	}
}

func TestErrorMap(t *testing.T) {
	t.Parallel()
	var storeErr error
	store := &scriptedStore{
		apply: func(context.Context, counter.Change) (counter.Receipt, error) { return counter.Receipt{}, storeErr },
		counts: func(_ context.Context, keys []string) []counter.Reading {
			return failAll(keys, storeErr)
		},
	}
	r := start(t, store, Config{})
	invalid, unavailable := codes.InvalidArgument, codes.Unavailable
	for _, tc := range []struct {
		err                     error
		withID, withoutID, read failure
	}{
		{err: counter.ErrRequestIDReused, withID: failure{code: codes.AlreadyExists, reason: "REQUEST_ID_REUSED"}},
		{err: counter.ErrRequestIDExpired, withID: failure{code: codes.FailedPrecondition, reason: "REQUEST_ID_EXPIRED"}},
		{err: counter.ErrRequestIDEarly, withID: failure{code: invalid, reason: "REQUEST_ID_EARLY", fields: []string{"request_id"}}},
		{err: counter.ErrOverflow, withID: failure{code: codes.OutOfRange, reason: "TOTAL_OVERFLOW"}},
		{err: counter.ErrOverloaded, withID: failure{code: codes.ResourceExhausted, reason: "OVERLOADED", retry: true}},
		{err: counter.ErrFull, withID: failure{code: codes.ResourceExhausted, reason: "STORE_FULL", retry: true}},
		{err: counter.ErrUnavailable, withID: failure{code: unavailable, reason: "STORE_UNAVAILABLE", retry: true}},
		{
			err:       counter.ErrInDoubt,
			withID:    failure{code: unavailable, reason: "OUTCOME_UNKNOWN", retry: true},
			withoutID: failure{code: unavailable, reason: "OUTCOME_UNKNOWN"},
			read:      failure{code: unavailable, reason: "STORE_UNAVAILABLE", retry: true},
		},
		{
			err:       context.DeadlineExceeded,
			withID:    failure{code: unavailable, reason: "OUTCOME_UNKNOWN", retry: true},
			withoutID: failure{code: unavailable, reason: "OUTCOME_UNKNOWN"},
			read:      failure{code: unavailable, reason: "STORE_UNAVAILABLE", retry: true},
		},
		{err: errors.New("no such thing"), withID: failure{code: codes.Internal, reason: "INTERNAL"}},
	} {
		if tc.withoutID.reason == "" {
			tc.withoutID = tc.withID
		}
		if tc.read.reason == "" {
			tc.read = tc.withID
		}
		storeErr = fmt.Errorf("%w: %w", tc.err, errDriver)
		_, err := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "secret", RequestId: "id-17", Actor: "secret"})
		wantFailure(t, err, tc.withID)
		_, err2 := r.client.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "secret"})
		wantFailure(t, err2, tc.withoutID)
		_, err3 := r.client.Get(t.Context(), &plusonev1.GetRequest{Key: "secret"})
		wantFailure(t, err3, tc.read)
		_, err4 := r.client.BatchGet(t.Context(), &plusonev1.BatchGetRequest{Keys: []string{"secret", "secret2"}})
		wantFailure(t, err4, tc.read)
		for _, err := range []error{err, err2, err3, err4} {
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("driver text reached the caller: %v", err)
			}
		}
	}
	log := r.log.String()
	if !strings.Contains(log, "dial tcp") || !strings.Contains(log, "request_id=id-17") || !strings.Contains(log, "code=AlreadyExists") {
		t.Errorf("the log lacks the cause, the id or the code:\n%s", log)
	}
	if strings.Contains(log, "secret") {
		t.Errorf("a key or actor was logged:\n%s", log)
	}
}

// hangingStore answers a change with err when its context ends, or with the context's error.
func hangingStore(err error) *scriptedStore {
	return &scriptedStore{apply: func(ctx context.Context, _ counter.Change) (counter.Receipt, error) {
		<-ctx.Done()
		return counter.Receipt{}, cmp.Or(err, ctx.Err())
	}}
}

// The server answers by itself a little before the caller would give up.
func TestChangeIsCutOffBeforeCallersDeadline(t *testing.T) {
	t.Parallel()
	unknown := failure{code: codes.Unavailable, reason: "OUTCOME_UNKNOWN", retry: true}
	for name, tc := range map[string]struct {
		deadline, took time.Duration
		storeErr       error
		want           failure
	}{
		"near deadline": {deadline: 500 * time.Millisecond, took: 450 * time.Millisecond, want: unknown},
		"deadline":      {deadline: 3 * time.Second, took: 2900 * time.Millisecond, want: unknown},
		"none":          {took: DefaultRequestTimeout, want: unknown},
		"far deadline":  {deadline: time.Hour, took: DefaultRequestTimeout, want: unknown},
		"the store knows better": {
			deadline: time.Second, took: 900 * time.Millisecond,
			storeErr: fmt.Errorf("%w: %w", counter.ErrUnavailable, context.DeadlineExceeded),
			want:     failure{code: codes.Unavailable, reason: "STORE_UNAVAILABLE", retry: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newService(t, hangingStore(tc.storeErr), Config{})
				ctx, cancel := t.Context(), func() {}
				if tc.deadline > 0 {
					ctx, cancel = context.WithTimeout(ctx, tc.deadline)
				}
				defer cancel()
				began := time.Now()
				_, err := incrementMessage(ctx, s, &plusonev1.IncrementRequest{Key: "k", RequestId: "r"})
				wantFailure(t, err, tc.want)
				if took := time.Since(began); took != tc.took {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// The caller's deadline reaches the store, a little earlier.
func TestCallersDeadlineOverTheWire(t *testing.T) {
	t.Parallel()
	left := make(chan time.Duration, 1)
	r := start(t, &scriptedStore{apply: func(ctx context.Context, _ counter.Change) (counter.Receipt, error) {
		deadline, _ := ctx.Deadline()
		left <- time.Until(deadline)
		return counter.Receipt{Outcome: counter.Applied, AsOf: storeTime}, nil
	}}, Config{RequestTimeout: time.Hour})
	const deadline = 10 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if _, err := r.client.Increment(ctx, &plusonev1.IncrementRequest{Key: "k"}); err != nil {
		t.Fatal(err)
	}
	if got := <-left; got > deadline-100*time.Millisecond || got < deadline/2 {
		t.Errorf("the store has %v left of %v", got, deadline)
	}
}

func TestCallerThatCancels(t *testing.T) {
	t.Parallel()
	for name, storeErr := range map[string]error{
		"context error": context.Canceled, "store error": counter.ErrInDoubt,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, &scriptedStore{
				apply: func(ctx context.Context, _ counter.Change) (counter.Receipt, error) {
					<-ctx.Done()
					return counter.Receipt{}, storeErr
				},
				counts: func(ctx context.Context, keys []string) []counter.Reading {
					<-ctx.Done()
					return failAll(keys, storeErr)
				},
			}, Config{RequestTimeout: time.Minute})
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := incrementMessage(ctx, s, &plusonev1.IncrementRequest{Key: "k", RequestId: "r"})
			wantFailure(t, err, failure{code: codes.Canceled, reason: "CANCELLED"})
			s.cache.put(entryOf(t, "known", counter.Count{AsOf: storeTime}, 0, 0))
			for _, key := range []string{"k", "known"} {
				_, err = getMessage(ctx, s, &plusonev1.GetRequest{Key: key, MaxAge: durationpb.New(0)})
				wantFailure(t, err, failure{code: codes.Canceled, reason: "CANCELLED"})
			}
		})
	}
}

func TestAnswerContext(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		left, limit, want time.Duration
	}{
		"a tenth is kept":      {left: 500 * time.Millisecond, limit: time.Minute, want: 450 * time.Millisecond},
		"at most 100 ms":       {left: 10 * time.Second, limit: time.Minute, want: 9900 * time.Millisecond},
		"the limit is shorter": {left: 10 * time.Second, limit: 5 * time.Second, want: 5 * time.Second},
		"no deadline":          {limit: 5 * time.Second, want: 5 * time.Second},
		"no limit":             {left: 10 * time.Second, want: 9900 * time.Millisecond},
		"neither":              {},
	} {
		parent, cancel := t.Context(), func() {}
		if tc.left > 0 {
			parent, cancel = context.WithTimeout(parent, tc.left)
		}
		ctx, cancel2 := answerContext(parent, tc.limit)
		deadline, ok := ctx.Deadline()
		if ok != (tc.want > 0) {
			t.Errorf("%s: has a deadline: %v", name, ok)
		}
		if off := deadline.Sub(now) - tc.want; ok && (off < 0 || off > 300*time.Millisecond) {
			t.Errorf("%s: off by %v", name, off)
		}
		cancel2()
		cancel()
	}
}

// A moment that the store's clock shall reach is part of the contract of reads over the wire too.
func TestMinAsOfAhead(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	req := &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(storeTime.Add(maxAhead + 1))}
	_, err := r.client.Get(t.Context(), req)
	ahead := failure{code: codes.InvalidArgument, reason: "MIN_AS_OF_AHEAD", fields: []string{"min_as_of"}}
	wantFailure(t, err, ahead)
	// Also when a value is known by now.
	_, err = r.client.Get(t.Context(), req)
	wantFailure(t, err, ahead)
	_, err = r.client.BatchGet(t.Context(), &plusonev1.BatchGetRequest{Keys: []string{"k", "l"}, MinAsOf: req.MinAsOf})
	wantFailure(t, err, ahead)
}
