package storetest_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/storetest"
)

func testImport(t *testing.T, d *adminData) {
	a, other := d.serve(t), d.serve(t)
	d.total(t, "old/1", 7)
	a.holds(t, "old/1", 7, 0)
	then := time.Date(2019, 4, 1, 12, 0, 0, 123_000, time.UTC)
	chunk := &plusonev1.ImportRequest{
		RequestId: storetest.NewID(time.Now()),
		Totals:    []*plusonev1.ImportTotal{{Key: "old/1", Delta: 5e12}, {Key: "old/2", Delta: -3}, {Key: "old/1", Delta: 1}},
	}
	for i := range 500 {
		like := &plusonev1.ImportLike{Key: fmt.Sprint("old/", 1+i%2), Actor: fmt.Sprint("actor-", i)}
		if i > 3 {
			like.LikedAt = timestamppb.New(then.Add(time.Duration(i) * time.Second))
		}
		chunk.Likes = append(chunk.Likes, like)
	}
	resp, err := a.Import(t.Context(), chunk)
	must(t, err)
	if resp.Outcome != plusonev1.Outcome_OUTCOME_APPLIED || resp.LikesAdded != 500 {
		t.Errorf("answer is %v", resp)
	}
	other.holds(t, "old/1", 5e12+8+250, 250)
	a.unlike(t, "old/1", "actor-10")
	if resp, err = other.Import(t.Context(), chunk); err != nil || resp.Outcome != plusonev1.Outcome_OUTCOME_DUPLICATE {
		t.Errorf("the repetition is answered %v, %v", resp, err)
	}
	a.holds(t, "old/1", 5e12+8+249, 249)
	a.holds(t, "old/2", -3+250, 250)
	likes, err := other.BatchGetLikes(t.Context(), &plusonev1.BatchGetLikesRequest{Actor: "actor-20", Keys: []string{"old/1"}})
	must(t, err)
	if at := likes.Likes[0].LikedAt.AsTime(); !at.Equal(then.Add(20 * time.Second)) {
		t.Errorf("liked at %v", at)
	}
	chunk.Totals[1].Delta++
	if _, err = a.Import(t.Context(), chunk); reason(err) != "REQUEST_ID_REUSED" {
		t.Errorf("another payload is answered %v", err)
	}
	// To import the likes once more, under another id, changes nothing either.
	if resp, err = a.Import(t.Context(), &plusonev1.ImportRequest{RequestId: "anew", Likes: chunk.Likes[4:]}); err != nil || resp.LikesAdded != 0 {
		t.Errorf("the likes, imported again, are answered %v, %v", resp, err)
	}
	a.holds(t, "old/2", -3+250, 250)
	a.holds(t, "old/1", 5e12+8+249, 249)
}

// testImportIsOlder: what the store knows from later than an imported like stays, and what it knows from earlier goes.
func testImportIsOlder(t *testing.T, d *adminData) {
	a, other := d.serve(t), d.serve(t)
	const key = "songs/1"
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-ago)) }
	like := func(id string, likes ...*plusonev1.ImportLike) int64 {
		t.Helper()
		resp, err := other.Import(t.Context(), &plusonev1.ImportRequest{RequestId: id, Likes: likes})
		must(t, err)
		return resp.LikesAdded
	}
	a.like(t, key, "gone")
	a.unlike(t, key, "gone")
	a.like(t, key, "there")
	if n := like("first", &plusonev1.ImportLike{Key: key, Actor: "gone", LikedAt: at(time.Hour)},
		&plusonev1.ImportLike{Key: key, Actor: "there", LikedAt: at(time.Hour)},
		&plusonev1.ImportLike{Key: key, Actor: "new", LikedAt: at(time.Hour)}); n != 1 {
		t.Errorf("%d likes were added, want 1", n)
	}
	a.holds(t, key, 2, 2)
	a.unlike(t, key, "new")
	if n := like("second", &plusonev1.ImportLike{Key: key, Actor: "new", LikedAt: at(time.Minute)}); n != 0 {
		t.Errorf("%d likes were added, want none", n)
	}
	if n := like("third", &plusonev1.ImportLike{Key: key, Actor: "new"}, &plusonev1.ImportLike{Key: key, Actor: "gone"}); n != 2 {
		t.Errorf("%d likes were added, want 2", n)
	}
	a.holds(t, key, 3, 3)
}
