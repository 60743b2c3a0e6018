package shard_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// sealedLikes writes an increment and two likes of a to a window of shard 0, on top of a cached base of 10 with 4 likes,
// and seals it.
func (f *fixture) sealedLikes(t testing.TB) (window int64) {
	t.Helper()
	window = f.now
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 10, Likes: 4})
	f.sets(t, "11", liking(part(0, entry("a", 5)), like("al", never), like("bo", never)))
	f.advance(t, windowMS)
	f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{window}})
	return window
}

func (f *fixture) moves(t testing.TB, window int64, moves shard.Moves) {
	t.Helper()
	must(t, f.Move(t.Context(), 0, window, moves))
}

// holdsOf checks what shard 0 holds of the key a, whose base is cached.
func (f *fixture) holdsOf(t testing.TB, value, likes int64) {
	t.Helper()
	f.reads(t, 0, "a", shard.KeyValue{Value: value, Likes: likes, Cached: true})
}

func movedDelta(delta, likes int64, reload bool) shard.Moves {
	return shard.Moves{Deltas: []shard.MovedDelta{{Key: "a", Delta: delta, Likes: likes, Reload: reload}}}
}

// endsWith ends a window of shard 0 that holds so many likes.
func (f *fixture) endsWith(t testing.TB, window int64, likes int) {
	t.Helper()
	must(t, f.End(t.Context(), 0, window, likes))
}

// Likes in bases, in windows and on their way from one to the other.
var likeFlushCases = map[string]func(t *testing.T, f *fixture){
	"like/read": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 100, Likes: 40}, shard.Base{Key: "b", Total: 7, Likes: -3})
		f.sets(t, "11", liking(part(0, entry("b", 2)), like("al", never), like("bo", never)))
		f.advance(t, windowMS)
		f.sets(t, "1", liking(part(0, entry("a", 10)), unlike("al", never)))
		got, err := f.Read(t.Context(), []shard.KeyGroup{{Shard: 1, Keys: []string{"a"}}, {Shard: 0, Keys: []string{"b", "c", "a"}}})
		must(t, err)
		micros := f.now * 1000
		equal(t, "answers", got, []shard.ReadReply{
			{Micros: micros, Values: []shard.KeyValue{{}}},
			{Micros: micros, Values: []shard.KeyValue{
				{Value: 9, Likes: -3, Cached: true}, {}, {Value: 111, Likes: 41, Cached: true},
			}},
		})
		f.evict(t, "a")
		f.reads(t, 0, "a", shard.KeyValue{Value: 11, Likes: 1})
	},

	"like/read at the edge": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: -5, Likes: math.MaxInt64})
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.holdsOf(t, -4, math.MaxInt64)
	},

	"like/load": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0, entry("a", 3)), like("al", never)))
		f.advance(t, windowMS)
		second := f.now
		f.sets(t, "1", liking(part(0), like("bo", never)))
		f.advance(t, windowMS)
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		// The ledger applied the first two windows.
		f.load(t, 0, second, shard.Base{Key: "a", Total: 50, Likes: 20})
		f.holdsOf(t, 49, 19)
		f.evict(t, "a")
		f.load(t, 0, second, shard.Base{Key: "a", Total: math.MinInt64 + 4, Likes: math.MinInt64 + 1})
		f.holdsOf(t, math.MinInt64+4, math.MinInt64+1) // stopped at the edge, then with what is pending
	},

	"like/finish": func(t *testing.T, f *fixture) {
		window := f.sealedLikes(t)
		f.begin(t, 0, window, 0, "unused", false)
		f.holdsOf(t, 17, 6)
		// Something else than likes is left, or other likes than the worker knows: the window stays.
		f.endsWith(t, window, 2)
		set := newLike(epochMicros)
		f.records(t, window, map[string]shard.PendingLike{"al": set, "bo": set})
		f.holdsOf(t, 17, 6)
		f.moves(t, window, movedDelta(7, 2, false))
		f.endsWith(t, window, 1)
		f.endsWith(t, window, 3)
		f.holdsOf(t, 17, 6)
		got := f.scan(t, 0, window)
		equal(t, "deltas", len(got.Deltas)+len(got.LikeDeltas), 0)
		equal(t, "windows", f.windows(t, 0), []int64{window})
		f.endsWith(t, window, 2)
		equal(t, "windows", f.windows(t, 0), []int64{})
		equal(t, "likes", len(f.scan(t, 0, window).Likes), 0)
		f.holdsOf(t, 17, 6)
		f.knows(t, 0, "bo", newLike(epochMicros))
	},

	"like/finish in another order": func(t *testing.T, f *fixture) {
		window := f.sealedLikes(t)
		f.endsWith(t, window, 2) // before begin
		f.begin(t, 0, window, 0, "unused", false)
		f.moves(t, window+1, movedDelta(7, 2, false))
		for range 2 {
			f.moves(t, window, movedDelta(7, 2, false))
		}
		f.endsWith(t, window+1, 2)
		equal(t, "likes", len(f.scan(t, 0, window).Likes), 2)
		for range 2 {
			f.endsWith(t, window, 2)
		}
		f.moves(t, window, movedDelta(7, 2, false))
		f.holdsOf(t, 17, 6)
	},

	// The base may have been loaded before or after the ledger applied what differs from the window.
	"like/finish with other amounts than the window's": func(t *testing.T, f *fixture) {
		window := f.sealedLikes(t)
		f.begin(t, 0, window, 0, "unused", false)
		f.moves(t, window, movedDelta(7, 2, true))
		f.reads(t, 0, "a", shard.KeyValue{})
		f.load(t, 0, window, shard.Base{Key: "a", Total: 16, Likes: 5})
		f.moves(t, window, movedDelta(7, 2, false)) // there is nothing left to move
		f.holdsOf(t, 16, 5)
	},

	// The window took all likes of the key for repeats, and holds no delta of it.
	"like/finish with other amounts than none": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 10, Likes: 4})
		f.sets(t, "0", liking(part(0), unlike("al", never)))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "unused", false)
		f.moves(t, epochMS+1, movedDelta(0, 0, true))
		f.holdsOf(t, 10, 4)
		f.moves(t, epochMS, movedDelta(0, 0, true))
		f.reads(t, 0, "a", shard.KeyValue{})
	},

	"like/finish without a base": func(t *testing.T, f *fixture) {
		window := f.sealedLikes(t)
		f.evict(t, "a")
		f.begin(t, 0, window, 0, "unused", false)
		f.moves(t, window, movedDelta(7, 2, false))
		f.reads(t, 0, "a", shard.KeyValue{})
	},

	"like/finish at the edge": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 1, Likes: math.MinInt64 + 1}, shard.Base{Key: "b", Total: 3, Likes: 2})
		f.sets(t, "1", liking(part(0, entry("b", 1)), like("al", never)))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "unused", false)
		f.moves(t, epochMS, shard.Moves{Deltas: []shard.MovedDelta{
			{Key: "a", Delta: 5, Likes: -5}, {Key: "b", Delta: -4, Likes: -2},
		}})
		f.holdsOf(t, math.MaxInt64, math.MinInt64)
		f.reads(t, 0, "b", shard.KeyValue{Value: -1, Cached: true})
	},

	// A window of repeats alone is one like any other.
	"like/finish repeats": func(t *testing.T, f *fixture) {
		f.sets(t, "0", liking(part(0), like("al", since(5))))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "unused", false)
		f.end(t, 0, epochMS)
		equal(t, "windows", f.windows(t, 0), []int64{epochMS})
		f.endsWith(t, epochMS, 1)
		equal(t, "windows", f.windows(t, 0), []int64{})
	},

	"like/discard": func(t *testing.T, f *fixture) {
		window := f.sealedLikes(t)
		f.discard(t, 0, window, "g1")
		f.reads(t, 0, "a", shard.KeyValue{})
		f.knows(t, 0, "al", newLike(epochMicros))
		f.evictLikes(t, 0)
		f.knowsNothing(t)
	},

	"like/stale copies go with their likes": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.advance(t, 1)
		f.seal(t, 0, epochMS, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.counts(t, 0, 0)
		f.knowsNothing(t)
	},

	"like/look-ups": func(t *testing.T, f *fixture) {
		f.sets(t, "11", liking(part(0), like("al", never)), liking(part(3), like("bo", never)))
		f.spread(t, 0, []string{"b"}, epochMS)
		b := counter.Pair{Key: "b", Actor: "al"}
		got, err := f.Likes(t.Context(), []shard.PairGroup{
			{Shard: 3, Pairs: []counter.Pair{pair("al"), pair("bo")}},
			{Shard: 0, Pairs: []counter.Pair{b, pair("al"), pair("bo"), pair("al")}},
			{Shard: 1, Pairs: []counter.Pair{b}},
		})
		must(t, err)
		set := shard.PairValue{Known: true, PendingLike: newLike(epochMicros)}
		equal(t, "likes", got, [][]shard.PairValue{{{}, set}, {{Marker: epochMS}, set, {}, set}, {{}}})
	},

	// Names that are a part of other names, and the bytes that names can have.
	"like/names": func(t *testing.T, f *fixture) {
		var likes []shard.LikeWrite
		want := map[counter.Pair]shard.PendingLike{}
		for _, p := range []counter.Pair{
			{Key: "a", Actor: "b"},
			{Key: "ab", Actor: "b"},
			{Key: "a", Actor: "bb"},
			{Key: "ä:{}*%[", Actor: "→"},
			{Key: strings.Repeat("k", 256), Actor: strings.Repeat("a", 128)},
		} {
			likes = append(likes, shard.LikeWrite{Pair: p, Liked: true, Known: never, Group: -1})
			want[p] = newLike(epochMicros)
		}
		f.sets(t, "11111", liking(part(0), likes...))
		got := f.scan(t, 0, epochMS)
		equal(t, "likes", got.Likes, want)
		equal(t, "deltas", got.Deltas, map[string]int64{"a": 2, "ab": 1, "ä:{}*%[": 1, strings.Repeat("k", 256): 1})
		equal(t, "deltas of likes", got.LikeDeltas, got.Deltas)
	},

	"large/likes": func(t *testing.T, f *fixture) {
		const n = 8_192 // as many as a batch has
		group := timed(f.now)
		var likes []shard.LikeWrite
		want := make([]byte, n)
		for i := range n {
			l := claimed(like(fmt.Sprint("u", i), never), 0, i)
			if want[i] = '1'; i%3 == 0 {
				l.Known, want[i] = since(5), '0'
			}
			likes = append(likes, l)
			group.Fields, group.Values = append(group.Fields, fmt.Sprint("id", i)), append(group.Values, fmt.Sprint("v", i))
		}
		f.sets(t, string(want), liking(claiming(part(0), group), likes...))
		counted := int64(strings.Count(string(want), "1"))
		f.counts(t, 0, counted)
		var known shard.WriteReply
		for i, field := range group.Fields {
			known.Known = append(known.Known, shard.KnownClaim{Field: i, Value: fmt.Sprint("v", field[2:], string(want[i]))})
		}
		f.refused(t, f.batch(claiming(part(0, entry("b", 1)), group)), known)

		// In the next hour the whole of it moves to another bucket.
		f.advance(t, hourMS)
		for i := range likes {
			likes[i].Group, likes[i].Liked = -1, false
		}
		f.sets(t, strings.Repeat("1", n), liking(part(0), likes...))
		f.counts(t, 0, counted-n)
		f.evictLikes(t, 1)
		var pairs []counter.Pair
		for i := range likes {
			pairs = append(pairs, likes[i].Pair)
		}
		for chunk := range slices.Chunk(pairs, 4_000) {
			values, err := f.Likes(t.Context(), []shard.PairGroup{{Shard: 0, Pairs: chunk}})
			must(t, err)
			for i, v := range values[0] {
				equal(t, "like "+chunk[i].Actor, v, shard.PairValue{Known: true, PendingLike: state(false, f.now*1000, f.now*1000)})
			}
		}
		if _, err := f.Likes(t.Context(), []shard.PairGroup{{Shard: 0, Pairs: pairs[:4_001]}}); err == nil {
			t.Error("a pair too many was looked up")
		}

		last := int64(0)
		for _, window := range f.windows(t, 0) {
			f.set(t, max(f.now, window+windowMS))
			reply, err := f.Seal(t.Context(), 0, f.sealed(0, last), "g")
			must(t, err)
			f.remember(0, reply.Sealed[0])
			f.begin(t, 0, window, last, "unused", false)
			f.endsWith(t, window, f.moveAll(t, window))
			last = window
		}
		equal(t, "windows", f.windows(t, 0), []int64{})
		for chunk := range slices.Chunk(pairs, 4_000) {
			values, err := f.Likes(t.Context(), []shard.PairGroup{{Shard: 0, Pairs: chunk}})
			must(t, err)
			equal(t, "known", slices.IndexFunc(values[0], func(v shard.PairValue) bool { return v.Known }), -1)
		}
	},
}
