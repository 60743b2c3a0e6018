package storetest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// TestDeleteWaitsForPendingLikes: likes that no worker has drained are pending, and a Delete is not done before they are
// taken back too. Increments that are pending are gone at once.
func TestDeleteWaitsForPendingLikes(t *testing.T) {
	t.Parallel()
	d := newDeployment(t, redistest.Start(t).Addr)
	data := d.adminData(time.Time{})
	a := data.serve(t)
	const key = "posts/pending"
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = storetest.NewID(time.Now())
		a.add(t, key, 2, ids[i])
		a.like(t, key, fmt.Sprint("actor-", i))
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	id := storetest.NewID(time.Now())
	resp, err := a.Delete(short, &plusonev1.DeleteRequest{Key: key, RequestId: id})
	if err != nil || resp.Done || resp.LikesRemoved != 0 {
		t.Fatalf("without a worker: %v, %v", resp, err)
	}
	a.holds(t, key, 20, 20)
	a.add(t, key, 7, "") // begun while it is not done: it goes too
	startWorker(t, d.scripts(t), d.ledger)
	if resp := a.delete(t, key, id); resp.Duplicate || resp.LikesRemoved != 20 {
		t.Errorf("with a worker: %v", resp)
	}
	a.holds(t, key, 0, 0)
	for i, id := range ids {
		if outcome := a.add(t, key, 2, id); outcome != plusonev1.Outcome_OUTCOME_DUPLICATE {
			t.Fatalf("late retry %d: %v", i, outcome)
		}
	}
	data.check(t)
	a.holds(t, key, 0, 0)
}

// TestRollbackAfterDelete: a Redis that goes back to before a Delete, whose windows are full of what was deleted, brings
// nothing back.
func TestRollbackAfterDelete(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	d := newDeployment(t, redis.Addr)
	data := d.adminData(time.Time{})
	a := data.serve(t)
	const key, actor = "posts/restored", "users/forgotten"
	for i := range 20 {
		a.add(t, key, 2, "")
		a.like(t, key, fmt.Sprint("actor-", i))
		a.like(t, fmt.Sprint("other/", i), actor)
	}
	past := redis.Snapshot()
	startWorker(t, d.scripts(t), d.ledger)
	a.delete(t, key, "delete")
	forgotten, err := a.ForgetActor(t.Context(), &plusonev1.ForgetActorRequest{Actor: actor})
	if err != nil || !forgotten.Done {
		t.Fatalf("ForgetActor = %v, %v", forgotten, err)
	}
	d.drain(t)
	redis.Restore(past)
	if !testproc.Poll(20*time.Second, 20*time.Millisecond, func() bool {
		resp, err := a.Get(t.Context(), &plusonev1.GetRequest{Key: key, MaxAge: zero})
		return err == nil && resp.Count.Count == 0 && resp.Count.Likes == 0
	}) {
		t.Fatal("the counter is not 0 after the rollback")
	}
	data.check(t)
	a.holds(t, key, 0, 0)
	a.holds(t, "other/3", 0, 0)
	for column, value := range map[string]string{"key": key, "actor": actor} {
		if n := data.rows(t, "likes", column, value); n != 0 {
			t.Errorf("%d rows of %s are back", n, value)
		}
	}
}

// TestImportNeedsTheLedger: an imported like is not taken on trust, since the ledger may know a newer state.
func TestImportNeedsTheLedger(t *testing.T) {
	t.Parallel()
	d := newDeployment(t, redistest.Start(t).Addr)
	store := d.store(t)
	const key = "songs/1"
	now := time.Now()
	apply(t, store, counter.Change{Entries: []counter.Entry{{Key: key}}, Actor: "known", Like: counter.SetUnliked}, counter.Applied)
	d.ledger.Close()
	_, _, err := store.SetLikes(t.Context(), []counter.DatedLike{{
		Pair: counter.Pair{Key: key, Actor: "unknown"}, Liked: true, Micros: now.Add(-time.Hour).UnixMicro(),
	}})
	if !errors.Is(err, counter.ErrUnavailable) {
		t.Errorf("without the ledger: %v", err)
	}
	// What Redis knows needs no ledger.
	changed, _, err := store.SetLikes(t.Context(), []counter.DatedLike{{
		Pair: counter.Pair{Key: key, Actor: "known"}, Liked: true, Micros: now.Add(-time.Hour).UnixMicro(),
	}})
	if err != nil || changed != 0 {
		t.Errorf("of a pair that Redis knows: %d changed, %v", changed, err)
	}
}
