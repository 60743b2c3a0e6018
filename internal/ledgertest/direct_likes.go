package ledgertest

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
)

// What becomes of a like that is not refused.
var (
	changed       = flush.Verdict{Outcome: counter.Applied, Changed: true}
	unchanged     = flush.Verdict{Outcome: counter.Applied}
	hadChanged    = flush.Verdict{Outcome: counter.Duplicate, Changed: true}
	hadNotChanged = flush.Verdict{Outcome: counter.Duplicate}
)

// wantLikes compares the count of a key and the part of it from likes.
func wantLikes(t testing.TB, l flush.DirectLedger, key string, value, likes int64) {
	t.Helper()
	counts, err := l.Counts(t.Context(), []string{key})
	if err != nil {
		t.Fatalf("Counts: %v", err)
	}
	if counts[0].Value != value || counts[0].Likes != likes {
		t.Errorf("count is %d, %d of it likes, want %d and %d", counts[0].Value, counts[0].Likes, value, likes)
	}
}

// likeState reads what a pair stands at.
func likeState(t testing.TB, l flush.DirectLedger, key, actor string) counter.LikeState {
	t.Helper()
	likes, err := l.Likes(t.Context(), []counter.Pair{{Key: key, Actor: actor}})
	if err != nil || len(likes.States) != 1 {
		t.Fatalf("Likes: %+v, %v", likes, err)
	}
	return likes.States[0]
}

// rowsOf counts the rows of a key in a public table or view.
func rowsOf(t testing.TB, l DirectInstance, table, key string) (n int) {
	t.Helper()
	if err := l.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table+` WHERE key = $1`, key).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func likes(t *testing.T, l DirectInstance) {
	key, other := Key(), Key()
	wantVerdicts(t, commit(t, l, Unlike(key, "ann")), unchanged)
	if n := rowsOf(t, l, "likes", key); n != 0 {
		t.Errorf("an unlike of what was never liked left %d rows", n)
	}
	wantVerdicts(t, commit(t, l, Like(key, "ann")), changed)
	wantVerdicts(t, commit(t, l.Other, Like(key, "ann")), unchanged)
	wantVerdicts(t, commit(t, l.Other, Add(key, 40), Like(key, "bob"), Like(other, "ann")), counter.Applied, changed, changed)
	wantLikes(t, l, key, 42, 2)
	wantLikes(t, l, other, 1, 1)
	wantVerdicts(t, commit(t, l.Other, Unlike(key, "ann")), changed)
	wantVerdicts(t, commit(t, l, Unlike(key, "ann")), unchanged)
	wantLikes(t, l, key, 41, 1)
	if n := rowsOf(t, l, "likes", key); n != 2 {
		t.Errorf("%d rows, want that of the unlike kept", n)
	}
	wantVerdicts(t, commit(t, l, Add(key, -41), Like(key, "ann")), counter.Applied, changed)
	wantLikes(t, l, key, 1, 2)

	got, err := l.Other.Likes(t.Context(), []counter.Pair{
		{Key: other, Actor: "bob"}, {Key: key, Actor: "ann"}, {Key: other, Actor: "ann"}, {Key: key, Actor: "ann"}, {Key: "ann", Actor: key},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true, true, false} {
		if s := got.States[i]; s.Liked != want || s.At.IsZero() == want {
			t.Errorf("state %d: %+v, want liked %v", i, s, want)
		}
	}
	got, err = l.Likes(t.Context(), []counter.Pair{{Key: key, Actor: "bob"}, {Key: key, Actor: "cy"}, {Key: key, Actor: "ann"}, {Key: key, Actor: "bob"}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true, true} {
		if s := got.States[i]; s.Liked != want || s.At.IsZero() == want {
			t.Errorf("state %d of one key: %+v, want liked %v", i, s, want)
		}
	}
	if none, err := l.Likes(t.Context(), nil); err != nil || len(none.States) != 0 {
		t.Errorf("states of no pairs: %+v, %v", none, err)
	}
}

// likeMoments checks that At is when the state was last changed.
func likeMoments(t *testing.T, l DirectInstance) {
	key := Key()
	if s := likeState(t, l, key, "ann"); s != (counter.LikeState{}) {
		t.Errorf("never liked: %+v", s)
	}
	var last time.Time
	for i, step := range []struct {
		change counter.Change
		moves  bool
	}{
		{Like(key, "ann"), true},
		{Like(key, "ann"), false},
		{Add(key, 1), false},
		{Unlike(key, "ann"), true},
		{Unlike(key, "ann"), false},
		{Like(key, "ann"), true},
	} {
		_, asOf, err := l.Commit(t.Context(), []counter.Change{step.change})
		if err != nil {
			t.Fatal(err)
		}
		s := likeState(t, l.Other, key, "ann")
		if moved := s.At.After(last); moved != step.moves || !moved && !s.At.Equal(last) {
			t.Errorf("step %d: since %v, before that %v", i, s.At, last)
		}
		if s.At.After(asOf) || time.Since(s.At).Abs() > time.Minute || s.At.Nanosecond()%1000 != 0 {
			t.Errorf("step %d: since %v as of %v", i, s.At, asOf)
		}
		last = s.At
	}
}

// likeHistory checks that only true changes are in the history. The audit compares its sums.
func likeHistory(t *testing.T, l DirectInstance) {
	key, never := Key(), Key()
	commit(t, l, Unlike(never, "ann"))
	commit(t, l, With(Opaque(), Unlike(never, "ann")))
	for _, table := range []string{"counter_history", "counter_totals"} {
		if n := rowsOf(t, l, table, never); n != 0 {
			t.Errorf("likes that changed nothing left %d rows in %s", n, table)
		}
	}
	commit(t, l, Like(key, "ann"), Like(key, "bob"), Add(key, 3))
	commit(t, l, Like(key, "ann"), Unlike(key, "bob"))
	commit(t, l, Like(key, "eve"), Add(key, -1)) // a sum of nothing, of which a like is part
	wantLikes(t, l, key, 4, 2)
	level := Key()
	commit(t, l, Like(level, "ann"), Add(level, -1))
	wantLikes(t, l, level, 0, 1)
}

func likeRequestIDs(t *testing.T, l DirectInstance) {
	for _, id := range []func() counter.RequestID{func() counter.RequestID { return V7(time.Now()) }, Opaque} {
		key, like, repeat, unlike := Key(), id(), id(), id()
		wantVerdicts(t, commit(t, l, With(like, Like(key, "ann"))), changed)
		wantVerdicts(t, commit(t, l.Other, With(like, Like(key, "ann"))), hadChanged)
		wantVerdicts(t, commit(t, l, With(repeat, Like(key, "ann"))), unchanged)
		wantVerdicts(t, commit(t, l.Other, With(repeat, Like(key, "ann"))), hadNotChanged)
		wantVerdicts(t, commit(t, l.Other, With(unlike, Unlike(key, "ann"))), changed)
		// A repetition that comes late changes nothing, and gets the answer of the first.
		wantVerdicts(t, commit(t, l, With(like, Like(key, "ann"))), hadChanged)
		wantVerdicts(t, commit(t, l, With(repeat, Like(key, "ann"))), hadNotChanged)
		wantVerdicts(t, commit(t, l, With(unlike, Unlike(key, "ann"))), hadChanged)
		wantLikes(t, l, key, 0, 0)
		// Known, new and no ids together.
		wantVerdicts(t, commit(t, l, With(unlike, Unlike(key, "ann")), Like(key, "bob"), With(id(), Like(key, "eve")), With(repeat, Like(key, "ann")), With(id(), Unlike(key, "ann"))),
			hadChanged, changed, changed, hadNotChanged, unchanged)
		wantLikes(t, l, key, 2, 2)
	}
}

func likeRequestIDsReused(t *testing.T, l DirectInstance) {
	key := Key()
	for _, known := range []bool{true, false} {
		id, increment := Opaque(), Opaque()
		first := []counter.Change{With(id, Like(key, fmt.Sprint("ann", known))), With(increment, Add(key, 1))}
		others := []counter.Change{
			With(id, Unlike(key, fmt.Sprint("ann", known))), With(id, Like(key, "bob")), With(id, Like(Key(), fmt.Sprint("ann", known))), With(id, Add(key, 1)),
			With(increment, Like(key, "eve")),
		}
		group := others
		if known {
			wantVerdicts(t, commit(t, l, first...), changed, counter.Applied)
		} else {
			group = append(first, others...)
		}
		for i, v := range commit(t, l, group...)[len(group)-len(others):] {
			wantVerdicts(t, []flush.Verdict{v}, counter.ErrRequestIDReused)
			if t.Failed() {
				t.Fatalf("change %d, known %v", i, known)
			}
		}
	}
	wantLikes(t, l, key, 4, 2)
}

func likeRequestIDAges(t *testing.T, l DirectInstance) {
	const slack = 10 * time.Second // for the time that the test itself takes
	key, now := Key(), time.Now()
	wantVerdicts(t, commit(t, l,
		With(V7(now.Add(-Dedupe-time.Millisecond)), Like(key, "old")),
		With(V7(now.Add(-Dedupe+slack)), Like(key, "ann")),
		With(V7(now.Add(counter.MaxEarly+slack)), Unlike(key, "ann")),
		With(V7(now.Add(counter.MaxEarly-time.Millisecond)), Like(key, "bob")),
		With(V7(now.Add(-Dedupe-time.Millisecond)), Unlike(key, "bob")),
	), counter.ErrRequestIDExpired, changed, counter.ErrRequestIDEarly, changed, counter.ErrRequestIDExpired)
	wantLikes(t, l, key, 2, 2)
	if likeState(t, l, key, "old").Liked || !likeState(t, l, key, "ann").Liked || !likeState(t, l, key, "bob").Liked {
		t.Error("a change that was refused for its age was made")
	}
}

// likesInOneGroup decides several changes of a pair in their order, whatever it stood at before.
func likesInOneGroup(t *testing.T, l DirectInstance) {
	for _, liked := range []bool{false, true} {
		first, second := unchanged, changed
		if !liked {
			first, second = changed, unchanged
		}
		before := func() string {
			key := Key()
			if liked {
				commit(t, l, Like(key, "ann"))
			}
			return key
		}
		key := before()
		wantVerdicts(t, commit(t, l, Like(key, "ann"), Like(key, "ann"), Unlike(key, "ann"), Unlike(key, "ann"), Like(key, "ann")),
			first, unchanged, changed, unchanged, changed)
		wantLikes(t, l, key, 1, 1)
		key = before()
		wantVerdicts(t, commit(t, l, Unlike(key, "ann"), Like(key, "ann"), Unlike(key, "ann")), second, changed, changed)
		wantLikes(t, l, key, 0, 0)
		// A repeated id is where its first use was.
		key = before()
		like, unlike := Opaque(), V7(time.Now())
		wantVerdicts(t, commit(t, l, With(like, Like(key, "ann")), With(unlike, Unlike(key, "ann")), With(like, Like(key, "ann")), With(unlike, Unlike(key, "ann"))),
			first, changed, flush.Verdict{Outcome: counter.Duplicate, Changed: first.Changed}, hadChanged)
		wantLikes(t, l, key, 0, 0)
		if likeState(t, l, key, "ann").Liked {
			t.Error("the repetition of a like changed something")
		}
		wantVerdicts(t, commit(t, l, With(like, Like(key, "ann"))), flush.Verdict{Outcome: counter.Duplicate, Changed: first.Changed})
	}
}

func likesAtTheEdge(t *testing.T, l DirectInstance) {
	full, low, other := Key(), Key(), Key()
	id, lowID := Opaque(), Opaque()
	wantVerdicts(t, commit(t, l, Like(low, "ann"), Like(full, "bob")), changed, changed)
	wantVerdicts(t, commit(t, l, Add(full, math.MaxInt64-1), Add(low, math.MinInt64), Add(low, -1)), counter.Applied, counter.Applied, counter.Applied)
	// Only what overflows is refused, and so is what depends on it.
	wantVerdicts(t, commit(t, l, With(id, Like(full, "ann")), Like(other, "ann"), Like(full, "bob"), With(lowID, Unlike(low, "ann")), Unlike(full, "eve"), Add(other, 5)),
		counter.ErrOverflow, changed, unchanged, counter.ErrOverflow, unchanged, counter.Applied)
	wantLikes(t, l, full, math.MaxInt64, 1)
	wantLikes(t, l, low, math.MinInt64, 1)
	wantLikes(t, l, other, 6, 1)
	if likeState(t, l, full, "ann").Liked || !likeState(t, l, low, "ann").Liked {
		t.Error("a like that was refused was made")
	}
	if n := rowsOf(t, l, "likes", full); n != 1 {
		t.Errorf("%d rows of likes, want no trace of the one that was refused", n)
	}
	// A refusal does not use up the id.
	wantVerdicts(t, commit(t, l, Unlike(full, "bob"), Add(low, 1)), changed, counter.Applied)
	wantVerdicts(t, commit(t, l.Other, With(id, Like(full, "ann")), With(lowID, Unlike(low, "ann"))), changed, changed)
	wantVerdicts(t, commit(t, l, With(id, Like(full, "ann")), With(lowID, Unlike(low, "ann"))), hadChanged, hadChanged)
	wantLikes(t, l, full, math.MaxInt64, 1)
	wantLikes(t, l, low, math.MinInt64, 0)
	// As many as fit.
	wantVerdicts(t, commit(t, l, Add(full, -2)), counter.Applied)
	fit := 0
	var group []counter.Change
	for i := range 5 {
		group = append(group, With(Opaque(), Like(full, fmt.Sprint("actor-", i))))
	}
	for _, v := range commit(t, l, group...) {
		if v == changed {
			fit++
		} else {
			wantVerdicts(t, []flush.Verdict{v}, counter.ErrOverflow)
		}
	}
	if fit != 2 {
		t.Errorf("%d likes fit, want 2", fit)
	}
	wantLikes(t, l, full, math.MaxInt64, 3)
}

func largeGroupsOfLikes(t *testing.T, l DirectInstance) {
	const n, keys = 3_000, 70
	prefix := Key()
	name := func(i int) string { return fmt.Sprintf("%s-%d", prefix, i%keys) }
	var group, back []counter.Change
	for i := range n {
		change, unlike := Like(name(i), fmt.Sprint("actor-", i)), Unlike(name(i), fmt.Sprint("actor-", i))
		if i%3 > 0 {
			change.RequestID, unlike.RequestID = Opaque(), V7(time.Now())
		}
		group, back = append(group, change), append(back, unlike)
	}
	for i, v := range commit(t, l, group...) {
		if v != changed {
			t.Fatalf("change %d: %+v", i, v)
		}
	}
	for i, v := range commit(t, l.Other, group...) {
		want := hadChanged
		if group[i].RequestID.IsZero() {
			want = unchanged
		}
		if v != want {
			t.Fatalf("repeated change %d: %+v, want %+v", i, v, want)
		}
	}
	for i, v := range commit(t, l, back[:n/2]...) {
		if v != changed {
			t.Fatalf("unlike %d: %+v", i, v)
		}
	}
	var names []string
	for i := range keys {
		names = append(names, name(i))
	}
	counts, err := l.Counts(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, c := range counts {
		if c.Value != c.Likes {
			t.Errorf("%d of %d are likes", c.Likes, c.Value)
		}
		total += c.Likes
	}
	if total != n/2 {
		t.Errorf("%d likes, want %d", total, n/2)
	}
	// As many as one read of states may be asked for at once.
	pairs := make([]counter.Pair, 10_000)
	for i := range pairs {
		pairs[i] = counter.Pair{Key: name(i % n), Actor: fmt.Sprint("actor-", i%n)}
	}
	states, err := l.Likes(t.Context(), pairs)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range states.States {
		if s.Liked != (i%n >= n/2) {
			t.Fatalf("state %d: %+v", i, s)
		}
	}
}
