package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
)

func TestLikes(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	ctx := patient(t)
	known := func(changed bool, count int64, at time.Duration) client.LikeReceipt {
		return client.LikeReceipt{Changed: changed, Count: count, CountKnown: true, AsOf: epoch.Add(at)}
	}
	for i, step := range []struct {
		call  func(context.Context, string, string, ...client.LikeOption) (client.LikeReceipt, error)
		actor string
		want  client.LikeReceipt
	}{
		{c.Unlike, "ann", known(false, 0, 0)},
		{c.Like, "ann", known(true, 1, time.Second)},
		{c.Like, "ann", known(false, 1, time.Second)},
		{c.Like, "bob", known(true, 2, 2*time.Second)},
		{c.Unlike, "ann", known(true, 1, 3*time.Second)},
	} {
		if got, err := step.call(ctx, "posts/1", step.actor); err != nil || got != step.want {
			t.Errorf("step %d: got %+v, %v, want %+v", i, got, err, step.want)
		}
	}
	got, err := c.Liked(ctx, "bob", []string{"posts/2", "posts/1", "posts/2"})
	want := []client.LikeState{
		{Key: "posts/2"}, {Key: "posts/1", Liked: true, Since: epoch.Add(2 * time.Second)}, {Key: "posts/2"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	ids := store.attemptIDs()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 5 {
		t.Errorf("five calls had the ids %q", ids)
	}
}

func TestLikeFaultsAreRetried(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	unavailable := refuseWith(codes.Unavailable, reason("STORE_UNAVAILABLE"))
	c := dial(t, server.addr, client.WithAttemptTimeout(10*time.Second))
	ctx := patient(t)
	// That the like was there already, when it is tried again, is not what the caller is told.
	server.then(unavailable, server.loseAnswer, server.loseAnswer, unavailable)
	got, err := c.Like(ctx, "posts/1", "ann")
	if want := (client.LikeReceipt{Changed: true, Count: 1, CountKnown: true, AsOf: epoch.Add(time.Second)}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	checkCounted(t, store, "posts/1", 1, 5)

	server.then(server.loseAnswer)
	if got, err := c.Like(ctx, "posts/1", "ann"); err != nil || got.Changed {
		t.Errorf("repeated like: got %+v, %v", got, err)
	}
	server.then(unavailable, server.loseAnswer)
	if got, err := c.Unlike(ctx, "posts/1", "ann"); err != nil || !got.Changed || got.Count != 0 {
		t.Errorf("unlike: got %+v, %v", got, err)
	}
	server.then(unavailable)
	if got, err := c.Liked(ctx, "ann", []string{"posts/1"}); err != nil || got[0].Liked {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A repetition that comes late, under its id, does not undo what came after.
func TestLikeWithRequestID(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	ctx := patient(t)
	for range 2 {
		if got, err := c.Like(ctx, "posts/1", "ann", client.WithRequestID("event-1")); err != nil || !got.Changed {
			t.Errorf("like: got %+v, %v", got, err)
		}
		if got, err := c.Unlike(ctx, "posts/1", "ann", client.WithRequestID("event-2")); err != nil || !got.Changed {
			t.Errorf("unlike: got %+v, %v", got, err)
		}
	}
	if got := store.total("posts/1"); got != 0 {
		t.Errorf("posts/1 is %d, want 0", got)
	}
	if ids, want := store.attemptIDs(), []string{"event-1", "event-2", "event-1", "event-2"}; !slices.Equal(ids, want) {
		t.Errorf("ids are %q, want %q", ids, want)
	}
	if _, err := c.Like(ctx, "posts/1", "ann", client.WithRequestID("")); err != nil {
		t.Fatal(err)
	}
	if id, err := uuid.Parse(store.attemptIDs()[4]); err != nil || id.Version() != 7 {
		t.Errorf("the id in place of an empty one is %q", store.attemptIDs()[4])
	}
}

func TestLikeInDoubt(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store, answerNever).addr, client.WithTimeout(500*time.Millisecond))
	_, err := c.Like(t.Context(), "posts/1", "ann")
	if !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want ErrInDoubt and context.DeadlineExceeded", err)
	}
	e := asError(t, err)
	if e.Method != "Like" || e.RequestID == "" {
		t.Errorf("got %+v", e)
	}
	got, err := c.Like(patient(t), "posts/1", "ann", client.WithRequestID(e.RequestID))
	if err != nil || !got.Changed {
		t.Errorf("got %+v, %v, want what the lost answer said", got, err)
	}
	checkCounted(t, store, "posts/1", 1, 2)
}

func TestLikeReceiptFields(t *testing.T) {
	t.Parallel()
	zero := int64(0)
	asOf := timestamppb.New(epoch)
	for _, test := range []struct {
		resp *plusonev1.UnlikeResponse
		want client.LikeReceipt
	}{
		{&plusonev1.UnlikeResponse{AsOf: asOf}, client.LikeReceipt{AsOf: epoch}},
		{&plusonev1.UnlikeResponse{AsOf: asOf, Count: &zero}, client.LikeReceipt{AsOf: epoch, CountKnown: true}},
		{
			&plusonev1.UnlikeResponse{AsOf: asOf, Changed: true, Provisional: true},
			client.LikeReceipt{AsOf: epoch, Changed: true, Provisional: true},
		},
	} {
		server := serve(t, newFakeStore(), func(context.Context, func() (any, error)) (any, error) { return test.resp, nil })
		if got, err := dial(t, server.addr).Unlike(patient(t), "posts/1", "ann"); err != nil || got != test.want {
			t.Errorf("got %+v, %v, want %+v", got, err, test.want)
		}
	}
}

// An answer that breaks the contract is an error, never a like that nobody set or unset.
func TestBadLikeAnswers(t *testing.T) {
	t.Parallel()
	likes := func(states ...*plusonev1.LikeState) *plusonev1.BatchGetLikesResponse {
		return &plusonev1.BatchGetLikesResponse{Likes: states}
	}
	for _, test := range []struct {
		name string
		resp any
		call func(context.Context, *client.Client) error
	}{
		{"empty like", &plusonev1.LikeResponse{}, func(ctx context.Context, c *client.Client) error {
			_, err := c.Like(ctx, "a", "ann")
			return err
		}},
		{"unlike without as_of", &plusonev1.UnlikeResponse{Changed: true}, func(ctx context.Context, c *client.Client) error {
			_, err := c.Unlike(ctx, "a", "ann")
			return err
		}},
		{"no likes", likes(), nil},
		{"too few likes", likes(&plusonev1.LikeState{Key: "a"}), nil},
		{"likes of other keys", likes(&plusonev1.LikeState{Key: "b"}, &plusonev1.LikeState{Key: "a"}), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, newFakeStore(), func(context.Context, func() (any, error)) (any, error) { return test.resp, nil })
			c := dial(t, server.addr)
			call, change := test.call, true
			if call == nil {
				change = false
				call = func(ctx context.Context, c *client.Client) error {
					_, err := c.Liked(ctx, "ann", []string{"a", "b"})
					return err
				}
			}
			err := call(patient(t), c)
			if e := asError(t, err); e.Code != codes.Internal {
				t.Errorf("got %v, want Internal", err)
			}
			if errors.Is(err, client.ErrInDoubt) != change {
				t.Errorf("in doubt is %v: %v", !change, err)
			}
		})
	}
}

func TestUnsendableLikes(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	c := dial(t, serve(t, store).addr)
	ctx := patient(t)
	const bad = "\xff"
	huge := strings.Repeat("x", 10_000*407+131)
	for _, test := range []struct {
		field string
		call  func() error
	}{
		{"key", func() error { _, err := c.Like(ctx, bad, "ann"); return err }},
		{"actor", func() error { _, err := c.Unlike(ctx, "a", bad); return err }},
		{"request_id", func() error { _, err := c.Like(ctx, "a", "ann", client.WithRequestID(bad)); return err }},
		{"", func() error { _, err := c.Unlike(ctx, huge, "ann"); return err }},
		{"actor", func() error { _, err := c.Liked(ctx, bad, []string{"a"}); return err }},
		{"keys[1]", func() error { _, err := c.Liked(ctx, "ann", []string{"a", bad}); return err }},
		{"", func() error { _, err := c.Liked(ctx, "ann", []string{huge}); return err }},
	} {
		err := test.call()
		e := asError(t, err)
		if !errors.Is(err, client.ErrInvalid) || errors.Is(err, client.ErrInDoubt) ||
			len(e.Violations) != 1 || e.Violations[0].Field != test.field || e.Attempts != 0 {
			t.Errorf("%q: got %v", test.field, err)
		}
	}
	if len(store.attemptIDs()) != 0 {
		t.Error("an unsendable request arrived")
	}
}
