package storetest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

func like(key, actor, id string) counter.Change { return setLike(key, actor, id, counter.SetLiked) }

func unlike(key, actor, id string) counter.Change {
	return setLike(key, actor, id, counter.SetUnliked)
}

func setLike(key, actor, id string, action counter.LikeAction) counter.Change {
	c := change(key, 0, id)
	c.Actor, c.Like = actor, action
	return c
}

// set expects that a like is done now, and whether that changed it.
func set(t *testing.T, s Store, c counter.Change, changed bool) counter.Receipt {
	t.Helper()
	r := apply(t, s, c, counter.Applied)
	if r.Changed != changed || r.Provisional {
		t.Fatalf("like action %d of %v: %+v, want changed %v", c.Like, c.Pair(), r, changed)
	}
	return r
}

// repeat expects the answer of the first call with the id.
func repeat(t *testing.T, s Store, c counter.Change, changed bool) {
	t.Helper()
	if r := apply(t, s, c, counter.Duplicate); r.Changed != changed {
		t.Fatalf("like action %d of %v, repeated: %+v, want changed %v", c.Like, c.Pair(), r, changed)
	}
}

// liked expects whether an actor likes a key, and returns since when.
func liked(t *testing.T, s Store, key, actor string, want bool) time.Time {
	t.Helper()
	states, err := s.Likes(t.Context(), actor, []string{key})
	if err != nil || len(states) != 1 {
		t.Fatalf("Likes(%s, %s) = %v, %v", actor, key, states, err)
	}
	if states[0].Liked != want {
		t.Errorf("%s likes %s: %v, want %v", actor, key, states[0].Liked, want)
	}
	return states[0].At
}

// likeCount expects what a key holds, and how much of it comes from likes.
func likeCount(t *testing.T, s Store, key string, value, likes int64) {
	t.Helper()
	got := s.Counts(t.Context(), []string{key})[0]
	if got.Err != nil || got.Value != value || got.Likes != likes {
		t.Errorf("Counts(%s) = %d, %d of it likes, %v, want %d and %d", key, got.Value, got.Likes, got.Err, value, likes)
	}
}

func testLikes(t *testing.T, s *suite) {
	other := s.Open(t)
	likeCount(t, s.store, "post", 0, 0)
	liked(t, s.store, "post", "ann", false)
	set(t, s.store, unlike("post", "ann", ""), false)
	likeCount(t, other, "post", 0, 0)
	set(t, s.store, like("post", "ann", ""), true)
	set(t, other, like("post", "ann", ""), false)
	set(t, s.store, like("post", "ann", NewID(time.Now())), false)
	set(t, other, like("post", "bob", ""), true)
	set(t, s.store, like("else", "ann", "opaque"), true)
	apply(t, s.store, change("post", 40, ""), counter.Applied)
	for _, store := range []Store{s.store, other, s.Open(t)} {
		likeCount(t, store, "post", 42, 2)
		likeCount(t, store, "else", 1, 1)
	}
	set(t, other, unlike("post", "ann", ""), true)
	set(t, s.store, unlike("post", "ann", ""), false)
	likeCount(t, s.store, "post", 41, 1)
	set(t, s.store, like("post", "ann", ""), true)
	apply(t, other, change("post", -41, ""), counter.Applied)
	likeCount(t, other, "post", 1, 2)
	for _, store := range []Store{s.store, other, s.Open(t)} {
		liked(t, store, "post", "ann", true)
		liked(t, store, "post", "bob", true)
		liked(t, store, "else", "bob", false)
		liked(t, store, "ann", "post", false)
	}
}

// testLikeMoments checks since when a like is, and as of when it is seen.
func testLikeMoments(t *testing.T, s *suite) {
	other := s.Open(t)
	if at := liked(t, other, "post", "ann", false); !at.IsZero() {
		t.Errorf("never liked, since %v", at)
	}
	last := time.Time{}
	for i, step := range []struct {
		change counter.Change
		moves  bool
	}{
		{like("post", "ann", ""), true},
		{like("post", "ann", NewID(time.Now())), false},
		{unlike("post", "ann", ""), true},
		{unlike("post", "ann", ""), false},
		{like("post", "ann", ""), true},
	} {
		before := other.Counts(t.Context(), []string{"post"})[0]
		r := set(t, s.store, step.change, step.moves)
		if !r.AsOf.After(before.AsOf) {
			t.Errorf("step %d: a read before it is as of %v, the like of %v", i, before.AsOf, r.AsOf)
		}
		at := liked(t, other, "post", "ann", step.change.Like == counter.SetLiked)
		if moved := at.After(last); moved != step.moves || !moved && !at.Equal(last) {
			t.Errorf("step %d: since %v, before that %v", i, at, last)
		}
		if time.Since(at).Abs() > time.Minute || at.Nanosecond()%1000 != 0 {
			t.Errorf("step %d: since %v", i, at)
		}
		last = at
	}
}

func testLikeIDs(t *testing.T, s *suite) {
	other := s.Open(t)
	for name, id := range map[string]func(n int) string{
		"timed":  func(int) string { return NewID(time.Now()) },
		"opaque": func(n int) string { return fmt.Sprint("like-", n) },
	} {
		key := "post/" + name
		first, again, back, never := like(key, "ann", id(1)), like(key, "ann", id(2)), unlike(key, "ann", id(3)), unlike(key, "bob", id(4))
		set(t, s.store, first, true)
		repeat(t, other, first, true)
		set(t, other, again, false)
		repeat(t, s.store, again, false)
		set(t, s.store, never, false)
		set(t, s.store, back, true)
		set(t, other, like(key, "bob", ""), true)
		// Repetitions that come late change nothing.
		for _, store := range []Store{s.store, other} {
			repeat(t, store, first, true)
			repeat(t, store, again, false)
			repeat(t, store, back, true)
			repeat(t, store, never, false)
		}
		likeCount(t, s.store, key, 1, 1)
		liked(t, other, key, "ann", false)
		liked(t, other, key, "bob", true)
	}
}

func testLikeIDReuse(t *testing.T, s *suite) {
	other := s.Open(t)
	for name, id := range map[string]string{"timed": NewID(time.Now()), "opaque": "reused"} {
		key := "post/" + name
		set(t, s.store, like(key, "ann", id), true)
		for _, store := range []Store{s.store, other} {
			refuse(t, store, unlike(key, "ann", id), counter.ErrRequestIDReused)
			refuse(t, store, like(key, "bob", id), counter.ErrRequestIDReused)
			refuse(t, store, change(key, 1, id), counter.ErrRequestIDReused)
		}
		increment := id + "-increment"
		apply(t, s.store, change(key, 5, increment), counter.Applied)
		refuse(t, other, like(key, "eve", increment), counter.ErrRequestIDReused)
		likeCount(t, other, key, 6, 1)
		repeat(t, other, like(key, "ann", id), true)
	}
}

func testLikeIDAges(t *testing.T, s *suite) {
	now := time.Now()
	refuse(t, s.store, like("k", "ann", NewID(now.Add(-s.dedupe-time.Second))), counter.ErrRequestIDExpired)
	refuse(t, s.store, like("k", "ann", NewID(now.Add(counter.MaxEarly+10*time.Second))), counter.ErrRequestIDEarly)
	set(t, s.store, like("k", "ann", NewID(now.Add(-s.dedupe+20*time.Second))), true)
	refuse(t, s.store, unlike("k", "ann", NewID(now.Add(-s.dedupe-time.Second))), counter.ErrRequestIDExpired)
	early := like("k", "bob", NewID(now.Add(counter.MaxEarly-10*time.Second)))
	set(t, s.store, early, true)
	repeat(t, s.store, early, true)
	likeCount(t, s.store, "k", 2, 2)
}

// testManyLikers has many actors like one key at once over two servers, each of them several times.
func testManyLikers(t *testing.T, s *suite) {
	stores := []Store{s.store, s.Open(t)}
	const actors, copies = 150, 4
	var changed tally
	run(t, actors*copies, func(i int) error {
		actor, id := fmt.Sprint("actor-", i%actors), ""
		if i%2 == 0 {
			id = NewID(time.Now())
		}
		r, err := stores[i/actors%2].Apply(t.Context(), like("viral", actor, id))
		if err == nil && r.Changed {
			changed.add(actor, counter.Applied)
		}
		return err
	})
	for actor, n := range changed.totals() {
		if n != 1 {
			t.Errorf("%s was told %d times that the like changed something", actor, n)
		}
	}
	if n := len(changed.totals()); n != actors {
		t.Errorf("%d actors were told that their like changed something, want %d", n, actors)
	}
	for _, store := range stores {
		likeCount(t, store, "viral", actors, actors)
	}
	run(t, actors/3, func(i int) error {
		r, err := stores[i%2].Apply(t.Context(), unlike("viral", fmt.Sprint("actor-", i), ""))
		if err == nil && !r.Changed {
			err = fmt.Errorf("the unlike of actor-%d changed nothing", i)
		}
		return err
	})
	likeCount(t, stores[1], "viral", actors-actors/3, actors-actors/3)
}

// testLikeHammer likes and unlikes one pair over two servers at once, and repeats some of it with its id.
func testLikeHammer(t *testing.T, s *suite) {
	stores := []Store{s.store, s.Open(t)}
	const senders, rounds = 12, 25
	var net atomic.Int64 // likes less unlikes that changed something
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for i := 0; ; i++ {
			got := stores[i%2].Counts(context.WithoutCancel(t.Context()), []string{"post"})[0]
			if got.Err != nil || got.Value < 0 || got.Value > 1 || got.Likes != got.Value {
				t.Errorf("read %d, %d of it likes, %v, of one actor's like", got.Value, got.Likes, got.Err)
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	run(t, senders, func(n int) error {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range rounds {
			id := []string{"", fmt.Sprintf("id-%d-%d", n, i), NewID(time.Now())}[random.IntN(3)]
			c, delta := like("post", "ann", id), int64(1)
			if random.IntN(2) == 0 {
				c, delta = unlike("post", "ann", id), -1
			}
			c.WantCount = true
			r, err := stores[random.IntN(2)].Apply(t.Context(), c)
			if err != nil {
				return err
			}
			if r.Changed {
				net.Add(delta)
			}
			if n := r.Count; n != nil && (n.Key != "post" || n.Value < 0 || n.Value > 1 || n.Likes != n.Value) {
				return fmt.Errorf("the count of one actor's like is %+v with the answer", *n)
			}
			if id == "" || random.IntN(2) == 0 {
				continue
			}
			again, err := stores[random.IntN(2)].Apply(t.Context(), c)
			if err != nil {
				return err
			}
			if again.Outcome != counter.Duplicate || again.Changed != r.Changed {
				return fmt.Errorf("first %+v, repeated %+v", r, again)
			}
		}
		return nil
	})
	close(done)
	reader.Wait()
	n := net.Load()
	if n != 0 && n != 1 {
		t.Errorf("likes and unlikes changed one pair by %d", n)
	}
	liked(t, stores[0], "post", "ann", n == 1)
	likeCount(t, stores[1], "post", n, n)
	for i, last := range []counter.Change{like("post", "ann", "last-1"), unlike("post", "ann", "last-2"), like("post", "ann", "last-3")} {
		apply(t, stores[i%2], last, counter.Applied)
		for _, store := range stores {
			liked(t, store, "post", "ann", last.Like == counter.SetLiked)
		}
	}
	likeCount(t, stores[0], "post", 1, 1)
}

// testActorsLikes reads what one actor likes of a thousand keys, some of which are asked for twice.
func testActorsLikes(t *testing.T, s *suite) {
	other := s.Open(t)
	key := func(i int) string { return fmt.Sprint("post/", i) }
	run(t, counter.MaxReadKeys/2, func(i int) error {
		if _, err := s.store.Apply(t.Context(), like(key(i*2), "ann", "")); err != nil || i%10 > 0 {
			return err
		}
		if _, err := other.Apply(t.Context(), like(key(i*2+1), "bob", "")); err != nil {
			return err
		}
		_, err := other.Apply(t.Context(), unlike(key(i*2), "ann", ""))
		return err
	})
	keys := make([]string, counter.MaxReadKeys)
	want := make([]bool, len(keys))
	for i := range keys {
		n := (i * 7) % len(keys)
		if i%25 == 24 {
			n = (i - 24) * 7 % len(keys) // asked for before
		}
		keys[i], want[i] = key(n), n%2 == 0 && n%20 != 0
	}
	for _, store := range []Store{s.store, other, s.Open(t)} {
		states, err := store.Likes(t.Context(), "ann", keys)
		if err != nil || len(states) != len(keys) {
			t.Fatalf("%d states, %v", len(states), err)
		}
		for i, state := range states {
			if state.Liked != want[i] || state.Liked && state.At.IsZero() {
				t.Fatalf("%s: %+v, want liked %v", keys[i], state, want[i])
			}
		}
	}
}

// testLikesInOneGroup has several changes of each of some pairs arrive together. Whatever their order, those that
// say that they changed something take turns.
func testLikesInOneGroup(t *testing.T, s *suite) {
	for round := range 10 {
		key := fmt.Sprint("post/", round)
		var net, wrong atomic.Int64
		run(t, 24, func(i int) error {
			actor := fmt.Sprint("actor-", i%3)
			c, delta := like(key, actor, fmt.Sprintf("%d-%d", round, i)), int64(1)
			if i%2 == 0 {
				c, delta = unlike(key, actor, fmt.Sprintf("%d-%d", round, i)), -1
			}
			r, err := s.store.Apply(t.Context(), c)
			if err != nil {
				return err
			}
			if r.Outcome != counter.Applied {
				wrong.Add(1)
			}
			if r.Changed {
				net.Add(delta)
			}
			return nil
		})
		states, likes := 0, net.Load()
		for i := range 3 {
			got, err := s.store.Likes(t.Context(), fmt.Sprint("actor-", i), []string{key})
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Liked {
				states++
			}
		}
		if wrong.Load() != 0 || int64(states) != likes {
			t.Fatalf("round %d: %d pairs are liked, by the answers %d; %d answers are wrong", round, states, likes, wrong.Load())
		}
		likeCount(t, s.store, key, likes, likes)
	}
}

func testLikesAtTheEdge(t *testing.T, s *suite) {
	s.SetTotal(t, "full", math.MaxInt64-1)
	counts(t, s.store, map[string]int64{"full": math.MaxInt64 - 1}) // the store sees the total from now on
	set(t, s.store, like("full", "ann", "first"), true)
	refuse(t, s.store, like("full", "bob", "too-many"), counter.ErrOverflow)
	set(t, s.store, like("full", "ann", ""), false) // changes nothing, so it fits
	likeCount(t, s.store, "full", math.MaxInt64, 1)
	liked(t, s.store, "full", "bob", false)
	set(t, s.store, unlike("full", "ann", ""), true)
	set(t, s.store, like("full", "bob", "too-many"), true) // a refusal does not use up the id
	repeat(t, s.store, like("full", "bob", "too-many"), true)
	refuse(t, s.store, change("full", 1, ""), counter.ErrOverflow)
	likeCount(t, s.store, "full", math.MaxInt64, 1)

	set(t, s.store, like("low", "ann", ""), true)
	apply(t, s.store, change("low", math.MinInt64, ""), counter.Applied)
	apply(t, s.store, change("low", -1, ""), counter.Applied)
	refuse(t, s.store, unlike("low", "ann", "too-low"), counter.ErrOverflow)
	liked(t, s.store, "low", "ann", true)
	likeCount(t, s.store, "low", math.MinInt64, 1)
	apply(t, s.store, change("low", 1, ""), counter.Applied)
	set(t, s.store, unlike("low", "ann", "too-low"), true)
	likeCount(t, s.store, "low", math.MinInt64, 0)
}

// testLikesAtTheEdgeInOneGroup has many likes of one key arrive together of which only some fit.
func testLikesAtTheEdgeInOneGroup(t *testing.T, s *suite) {
	s.SetTotal(t, "full", math.MaxInt64-10)
	counts(t, s.store, map[string]int64{"full": math.MaxInt64 - 10})
	var fit, refused atomic.Int64
	run(t, 40, func(i int) error {
		r, err := s.store.Apply(t.Context(), like("full", fmt.Sprint("actor-", i), fmt.Sprint("id-", i)))
		switch {
		case isError(err, counter.ErrOverflow):
			refused.Add(1)
			return nil
		case err == nil && r.Changed:
			fit.Add(1)
		}
		return err
	})
	if fit.Load() != 10 || refused.Load() != 30 {
		t.Errorf("%d fit, %d refused, want 10 and 30", fit.Load(), refused.Load())
	}
	likeCount(t, s.store, "full", math.MaxInt64, 10)
}
