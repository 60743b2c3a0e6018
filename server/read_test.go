package server

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

func TestLastKnownValueIsMarkedStale(t *testing.T) {
	t.Parallel()
	for name, storeErr := range map[string]error{
		"unavailable": counter.ErrUnavailable,
		"overloaded":  fmt.Errorf("%w: queue", counter.ErrOverloaded),
		"timeout":     context.DeadlineExceeded,
		"unknown":     errDriver,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := &clockStore{}
				s := newService(t, store, Config{})
				known := get(t, s, &plusonev1.GetRequest{Key: "k"})
				store.fail(storeErr)
				wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, false) // still fresh
				time.Sleep(24 * time.Hour)
				for _, req := range []*plusonev1.GetRequest{
					{Key: "k"},
					{Key: "k", MaxAge: durationpb.New(0)},
					{Key: "k", MinAsOf: timestamppb.Now()},
				} {
					c := get(t, s, req)
					wantCount(t, c, 1, true)
					if !c.AsOf.AsTime().Equal(known.AsOf.AsTime()) {
						t.Errorf("as of %v, want %v", c.AsOf.AsTime(), known.AsOf.AsTime())
					}
				}
				if known.Stale {
					t.Error("an answer that was given before has changed")
				}
				if n := value(t, s.metrics.stale); n != 3 {
					t.Errorf("%v stale answers counted", n)
				}
				// A key of which nothing is known fails, and with it the batch: 0 is never made up.
				if _, err := batchGetMessage(t.Context(), s, &plusonev1.BatchGetRequest{Keys: []string{"k", "new"}}); err == nil {
					t.Error("a batch with an unknown key succeeded")
				}
				store.err.Store(nil)
				wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), store.reads.Load(), false)
			})
		})
	}
}

func TestSlowStoreIsAnsweredStaleBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		get(t, s, &plusonev1.GetRequest{Key: "k"})
		store.latency = time.Hour
		time.Sleep(time.Minute)
		began := time.Now()
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k"}), 1, true)
		if took := time.Since(began); took != DefaultRequestTimeout {
			t.Errorf("without a deadline it took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		resp, err := batchGetMessage(ctx, s, &plusonev1.BatchGetRequest{Keys: []string{"k"}})
		if err != nil {
			t.Fatal(err)
		}
		wantCount(t, resp.Counts[0], 1, true)
		if took := time.Since(began); took != 900*time.Millisecond {
			t.Errorf("with a deadline of 1 s it took %v", took)
		}
	})
}

// Callers who leave the store too little time get a value that is not from before the last of them.
func TestReadsInHasteAreNotStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		get(t, s, &plusonev1.GetRequest{Key: "k"})
		store.latency = 100 * time.Millisecond
		now := &plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(0)}
		for _, want := range []int64{1, 3, 5} { // each read is followed by another in the background
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			resp, err := getMessage(ctx, s, now)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			wantCount(t, resp.Count, want, true)
			time.Sleep(time.Second)
		}
		wantCount(t, get(t, s, now), 8, false)
		// Who has gone is not read for.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := getMessage(ctx, s, now); err == nil {
			t.Error("a caller who has gone was answered")
		}
		synctest.Wait()
		if n := store.reads.Load(); n != 9 {
			t.Errorf("%d reads", n)
		}
	})
}

func TestMinAsOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &clockStore{}
		s := newService(t, store, Config{})
		first := get(t, s, &plusonev1.GetRequest{Key: "k"})
		time.Sleep(time.Second)
		// The cached value is as new as asked.
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: first.AsOf}), 1, false)
		// It is not, but a fresh one is.
		wantCount(t, get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(first.AsOf.AsTime().Add(1))}), 2, false)
		// The store's clock is not there yet.
		for _, ahead := range []time.Duration{3 * time.Second, maxAhead} {
			began := time.Now()
			c := get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(began.Add(ahead))})
			took := time.Since(began)
			if c.Stale || c.AsOf.AsTime().Before(began.Add(ahead)) || took < ahead || took > ahead+10*time.Millisecond {
				t.Errorf("%v ahead: as of %v after %v, stale %v", ahead, c.AsOf.AsTime().Sub(began), took, c.Stale)
			}
		}
		began := time.Now()
		_, err := getMessage(t.Context(), s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(began.Add(maxAhead + 1))})
		wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "MIN_AS_OF_AHEAD", fields: []string{"min_as_of"}})
		if time.Since(began) != 0 {
			t.Error("the refusal took time")
		}
		// A caller who cannot wait that long gets what is known, as what it is.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		resp, err := getMessage(ctx, s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(began.Add(5 * time.Second))})
		if err != nil || !resp.Count.Stale {
			t.Errorf("got %v, %v", resp, err)
		}
	})
}

// A store whose clock stands still must not keep a reader forever, nor be asked without end.
func TestMinAsOfGivesUpOnStoppedClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &scriptedStore{}
		s := newService(t, store, Config{})
		began := time.Now()
		c := get(t, s, &plusonev1.GetRequest{Key: "k", MinAsOf: timestamppb.New(storeTime.Add(time.Millisecond))})
		if !c.Stale {
			t.Error("not stale")
		}
		if took := time.Since(began); took > maxAhead+2*DefaultRequestTimeout {
			t.Errorf("took %v", took)
		}
		if n := len(store.readCalls()); n > 40 {
			t.Errorf("%d reads", n)
		}
	})
}
