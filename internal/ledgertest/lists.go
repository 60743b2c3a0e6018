package ledgertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// listNames are in ascending order of their bytes, which is not that of any language.
var listNames = []string{"B", "a", "b", "z", "Ä", "ä", "ж", "✓"}

// listPage reads a page of a list.
type listPage func(ctx context.Context, of string, after counter.LikeCursor, limit int) ([]counter.Liked, error)

// wantList reads a list in pages of several sizes.
func wantList(t testing.TB, page listPage, of string, name func(counter.Liked) string, want []counter.Liked) {
	t.Helper()
	for _, limit := range []int{1, 3, max(1, len(want)), counter.MaxListed} {
		var got []counter.Liked
		var after counter.LikeCursor
		for len(got) <= len(want) {
			list, err := page(t.Context(), of, after, limit)
			if err != nil || len(list) > limit {
				t.Fatalf("a page of %d of %d: %v", len(list), limit, err)
			}
			got = append(got, list...)
			if len(list) < limit {
				break
			}
			last := list[len(list)-1]
			after = counter.LikeCursor{At: last.At, Name: name(last)}
		}
		same := func(a, b counter.Liked) bool { return a.Pair == b.Pair && a.At.Equal(b.At) }
		if !slices.EqualFunc(got, want, same) {
			t.Errorf("in pages of %d:\n%v, want\n%v", limit, got, want)
		}
	}
}

func actorOf(l counter.Liked) string { return l.Actor }
func keyOf(l counter.Liked) string   { return l.Key }

// newestFirst sorts likes as a list has them.
func newestFirst(likes []counter.Liked, name func(counter.Liked) string) []counter.Liked {
	return slices.SortedFunc(slices.Values(likes), func(a, b counter.Liked) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(name(b), name(a)))
	})
}

// likersAndLiked are what the lists of a key and an actor should be.
func likersAndLiked(all []counter.Liked, key, actor string) (likers, liked []counter.Liked) {
	for _, l := range all {
		if l.Key == key {
			likers = append(likers, l)
		}
		if l.Actor == actor {
			liked = append(liked, l)
		}
	}
	return newestFirst(likers, actorOf), newestFirst(liked, keyOf)
}

// directLists makes likes in groups, whose moments may be the same.
func directLists(t *testing.T, l DirectInstance) {
	key, actor := Key(), Key()
	var pairs []counter.Pair
	for _, name := range listNames {
		pairs = append(pairs, counter.Pair{Key: key, Actor: name}, counter.Pair{Key: name, Actor: actor})
	}
	pairs = append(pairs, counter.Pair{Key: key, Actor: actor}, counter.Pair{Key: "else", Actor: "else"})
	var group []counter.Change
	for i, pair := range pairs {
		group = append(group, Like(pair.Key, pair.Actor))
		if i%5 == 4 {
			commit(t, l, group...)
			group = nil
		}
	}
	commit(t, l, group...)
	commit(t, l, Unlike(pairs[0].Key, pairs[0].Actor), Unlike(pairs[3].Key, pairs[3].Actor))
	commit(t, l, Like(pairs[0].Key, pairs[0].Actor), Like(pairs[2].Key, pairs[2].Actor))

	read := func() (all []counter.Liked) {
		states, err := l.Likes(t.Context(), pairs)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range states.States {
			if s.Liked {
				all = append(all, counter.Liked{Pair: pairs[i], At: s.At})
			}
		}
		return all
	}
	likers, liked := likersAndLiked(read(), key, actor)
	if len(likers) != len(listNames)+1 || likers[0].Pair != pairs[0] || len(liked) != len(listNames) {
		t.Fatalf("%d likers, %d liked, want %d and %d", len(likers), len(liked), len(listNames)+1, len(listNames))
	}
	wantList(t, l.ListLikers, key, actorOf, likers)
	wantList(t, l.Other.ListLiked, actor, keyOf, liked)
	wantList(t, l.ListLikers, Key(), actorOf, nil)
	wantList(t, l.ListLiked, Key(), keyOf, nil)

	// What is liked or unliked while a list is read changes nothing in what comes after, but for what is gone.
	page, err := l.ListLikers(t.Context(), key, counter.LikeCursor{}, 3)
	if err != nil || len(page) != 3 {
		t.Fatalf("%v, %v", page, err)
	}
	commit(t, l, Like(key, "new"), Unlike(key, page[1].Actor), Unlike(key, likers[5].Actor))
	commit(t, l, Like(key, page[1].Actor))
	rest, err := l.ListLikers(t.Context(), key, counter.LikeCursor{At: page[2].At, Name: page[2].Actor}, 100)
	want := slices.Delete(slices.Clone(likers[3:]), 2, 3)
	if err != nil || fmt.Sprint(rest) != fmt.Sprint(want) {
		t.Errorf("the rest is %v, %v, want %v", rest, err, want)
	}
}

// windowLists sets likes of which several are of one moment.
func windowLists(t *testing.T, l WindowInstance) {
	const key, actor = "list/key", "list-actor"
	start := time.Now().Truncate(time.Second).UnixMicro()
	w := flush.Window{Shard: 1, ID: 1, WindowPart: shard.WindowPart{Likes: make(map[counter.Pair]shard.PendingLike)}}
	var all []counter.Liked
	set := func(key, actor string, liked bool, micros int64) {
		w.Likes[counter.Pair{Key: key, Actor: actor}] = shard.PendingLike{Liked: liked, Micros: micros, Since: micros}
		if liked {
			all = append(all, counter.Liked{Pair: counter.Pair{Key: key, Actor: actor}, At: time.UnixMicro(micros)})
		}
	}
	for i, name := range listNames {
		set(key, name, true, start+int64(i/3))
		set("list/"+name, actor, true, start+int64((i+1)/3))
		set(key, "not-"+name, false, start+int64(i))
		set("list/not-"+name, actor, false, start+int64(i))
	}
	set(key, actor, true, start+1)
	apply(t, l, w)
	likers, liked := likersAndLiked(all, key, actor)
	wantList(t, l.ListLikers, key, actorOf, likers)
	wantList(t, l.Other.ListLiked, actor, keyOf, liked)
	wantList(t, l.ListLikers, "list/none", actorOf, nil)

	// A window of another shard does not disturb a list that is being read.
	page, err := l.ListLiked(t.Context(), actor, counter.LikeCursor{}, 3)
	if err != nil || len(page) != 3 {
		t.Fatalf("%v, %v", page, err)
	}
	w = flush.Window{Shard: 0, ID: 1, WindowPart: shard.WindowPart{Likes: make(map[counter.Pair]shard.PendingLike)}}
	set("list/new", actor, true, start+100)
	set(liked[1].Key, actor, true, start+101)
	set(liked[4].Key, actor, false, start+102)
	apply(t, l, w)
	rest, err := l.ListLiked(t.Context(), actor, counter.LikeCursor{At: page[2].At, Name: page[2].Key}, 100)
	want := slices.Delete(slices.Clone(liked[3:]), 1, 2)
	if err != nil || fmt.Sprint(rest) != fmt.Sprint(want) {
		t.Errorf("the rest is %v, %v, want %v", rest, err, want)
	}
}
