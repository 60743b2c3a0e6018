package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// never is what the sender of a like knows of a pair that the ledger does not have.
var never = shard.KnownLike{Source: shard.LikeLoaded, Watermark: 2 * epochMS}

// since is what the sender knows of a pair that has been liked since a moment (in µs).
func since(micros int64) shard.KnownLike {
	known := never
	known.PendingLike = state(true, micros, micros)
	return known
}

func state(liked bool, micros, since int64) shard.PendingLike {
	return shard.PendingLike{Liked: liked, Micros: micros, Since: since}
}

func pair(actor string) counter.Pair { return counter.Pair{Key: "a", Actor: actor} }

// like is an actor's like of the key a, without a claim; unlike takes it back.
func like(actor string, known shard.KnownLike) shard.LikeWrite {
	return shard.LikeWrite{Pair: pair(actor), Liked: true, Known: known, Group: -1}
}

func unlike(actor string, known shard.KnownLike) shard.LikeWrite {
	l := like(actor, known)
	l.Liked = false
	return l
}

// claimed gives a like a claim.
func claimed(l shard.LikeWrite, group, field int) shard.LikeWrite {
	l.Group, l.Field = group, field
	return l
}

func liking(p shard.ShardWrite, likes ...shard.LikeWrite) shard.ShardWrite {
	p.Likes = likes
	return p
}

// sets writes a batch that must be applied, with the results of its likes, a letter each.
func (f *fixture) sets(t testing.TB, want string, parts ...shard.ShardWrite) {
	t.Helper()
	f.answers(t, want, f.batch(parts...))
}

func (f *fixture) answers(t testing.TB, want string, b *shard.WriteBatch) {
	t.Helper()
	equal(t, "answer", f.write(t, b), shard.WriteReply{Status: shard.WriteApplied, Likes: []shard.LikeResult(want)})
}

// knows checks what a shard knows of an actor's like of the key a.
func (f *fixture) knows(t testing.TB, n int, actor string, want shard.PendingLike) {
	t.Helper()
	f.looksUp(t, n, actor, shard.PairValue{Known: true, PendingLike: want})
}

// knowsNothing checks that shard 0 does not know whether al likes the key a.
func (f *fixture) knowsNothing(t testing.TB) {
	t.Helper()
	f.looksUp(t, 0, "al", shard.PairValue{})
}

func (f *fixture) looksUp(t testing.TB, n int, actor string, want shard.PairValue) {
	t.Helper()
	values, err := f.Likes(t.Context(), []shard.PairGroup{{Shard: n, Pairs: []counter.Pair{pair(actor)}}})
	must(t, err)
	equal(t, "like of "+actor, values, [][]shard.PairValue{{want}})
}

// counts checks what a shard holds of the key a, whose base is not cached: all of it is from likes.
func (f *fixture) counts(t testing.TB, n int, want int64) {
	t.Helper()
	f.reads(t, n, "a", shard.KeyValue{Value: want, Likes: want})
}

// records checks the states that a window of shard 0 holds.
func (f *fixture) records(t testing.TB, window int64, want map[string]shard.PendingLike) {
	t.Helper()
	pairs := map[counter.Pair]shard.PendingLike{}
	for actor, state := range want {
		pairs[pair(actor)] = state
	}
	equal(t, "likes of the window", f.scan(t, 0, window).Likes, pairs)
}

// drained takes all windows of shard 0 to their end, so that only membership knows what they held. The time for that
// passes.
func (f *fixture) drained(t testing.TB, last int64) (watermark int64) {
	t.Helper()
	f.advance(t, windowMS)
	for _, id := range f.windows(t, 0) {
		reply, err := f.Seal(t.Context(), 0, f.sealed(0, last), "g")
		must(t, err)
		equal(t, "rollback noticed", reply.RolledBack, false)
		f.remember(0, reply.Sealed[0])
		f.begin(t, 0, id, last, "unused", false)
		f.endsWith(t, id, f.moveAll(t, id))
		last = id
	}
	equal(t, "windows", f.windows(t, 0), []int64{})
	return last
}

// moveAll moves all that a window of shard 0 holds, but for its likes, and returns how many those are.
func (f *fixture) moveAll(t testing.TB, window int64) (likes int) {
	t.Helper()
	part := f.scan(t, 0, window)
	var moves shard.Moves
	for key, delta := range part.Deltas {
		moves.Deltas = append(moves.Deltas, shard.MovedDelta{Key: key, Delta: delta, Likes: part.LikeDeltas[key]})
	}
	for key := range part.Markers {
		moves.Markers = append(moves.Markers, key)
	}
	must(t, f.Move(t.Context(), 0, window, moves))
	return len(part.Likes)
}

const epochMicros = epochMS * 1000

var likeCases = map[string]func(t *testing.T, f *fixture){
	"like/change and repeat": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.counts(t, 0, 1)
		first := newLike(epochMicros)
		f.knows(t, 0, "al", first)
		f.records(t, epochMS, map[string]shard.PendingLike{"al": first})
		// The window holds the change: its repeat must not take its place.
		f.advance(t, 1)
		f.sets(t, "0", liking(part(0), like("al", never)))
		f.records(t, epochMS, map[string]shard.PendingLike{"al": first})
		f.knows(t, 0, "al", first)
		f.counts(t, 0, 1)
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		f.advance(t, 1)
		f.sets(t, "0", liking(part(0), unlike("al", never)))
		f.knows(t, 0, "al", state(false, epochMicros+1000, epochMicros+1000))
		f.counts(t, 0, 0)
		got := f.scan(t, 0, epochMS)
		equal(t, "deltas", got.Deltas, map[string]int64{"a": 0})
		equal(t, "deltas of likes", got.LikeDeltas, map[string]int64{"a": 0})
	},

	"like/counts read behind": func(t *testing.T, f *fixture) {
		groups := []shard.KeyGroup{{Shard: 0, Keys: []string{"a", "b"}}, {Shard: 1, Keys: []string{"a"}}}
		values := func(a, b int64) []shard.ReadReply {
			micros := f.now * 1000
			return []shard.ReadReply{
				{Micros: micros, Values: []shard.KeyValue{{Value: a, Likes: a, Cached: true}, {Value: b}}},
				{Micros: micros, Values: []shard.KeyValue{{Value: 1, Likes: 1}}},
			}
		}
		equal(t, "load", f.load(t, 0, 0, shard.Base{Key: "a", Total: 2, Likes: 2}), true)
		f.sets(t, "1", liking(part(1), like("al", never)))
		b := f.batch(liking(claiming(part(0, entry("b", 5)), opaque("id", "v")), like("bo", never), like("cy", since(1))))
		b.Counts = groups
		want := shard.WriteReply{Status: shard.WriteApplied, Likes: []shard.LikeResult("10"), Counts: values(3, 5)}
		equal(t, "answer", f.write(t, b), want)
		// A repetition changes nothing, and what is read is of its own moment.
		f.advance(t, 1)
		f.sets(t, "1", liking(part(0), like("di", never)))
		want.Counts = values(4, 5)
		equal(t, "answer to the repetition", f.write(t, b), want)
		// Of a batch that is not applied there is nothing to tell.
		refused := f.batch(liking(claiming(part(0), opaque("id", "v")), like("ed", never)))
		late := f.batch(liking(part(0), like("ed", never)))
		refused.Counts, late.Counts, late.Made = groups, groups, f.now-11_000
		for name, b := range map[string]*shard.WriteBatch{"refused": refused, "late": late} {
			if reply := f.write(t, b); reply.Status == shard.WriteApplied || reply.Counts != nil {
				t.Errorf("%s: %+v", name, reply)
			}
		}
	},

	"like/one after the other": func(t *testing.T, f *fixture) {
		f.sets(t, "1010110", liking(part(0), like("al", never), like("al", never), unlike("al", never),
			unlike("al", never), like("al", never), like("bo", never), unlike("cy", never)))
		f.counts(t, 0, 2)
		f.records(t, epochMS, map[string]shard.PendingLike{
			"al": state(true, epochMicros+2, epochMicros+2),
			"bo": newLike(epochMicros),
			"cy": state(false, epochMicros, 0),
		})
		// A repeat does not stand in the way of a change after it.
		f.sets(t, "01", liking(part(0), like("bo", never), unlike("bo", never)))
		f.knows(t, 0, "bo", state(false, epochMicros+1, epochMicros+1))
		f.counts(t, 0, 1)
	},

	"like/with entries": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0, entry("a", 5), entry("b", 2)), like("al", never)))
		f.reads(t, 0, "a", shard.KeyValue{Value: 6, Likes: 1})
		f.reads(t, 0, "b", shard.KeyValue{Value: 2})
		f.advance(t, windowMS)
		f.sets(t, "1", liking(part(0, entry("a", -1)), unlike("al", never)))
		f.reads(t, 0, "a", shard.KeyValue{Value: 4})
		equal(t, "deltas of likes", f.scan(t, 0, epochMS).LikeDeltas, map[string]int64{"a": 1})
		equal(t, "deltas of likes", f.scan(t, 0, f.now).LikeDeltas, map[string]int64{"a": -1})
	},

	"like/unknown": func(t *testing.T, f *fixture) {
		// Nothing is done with it, and nothing else is held up.
		f.sets(t, "?", liking(part(0), like("al", shard.KnownLike{})))
		equal(t, "windows", f.windows(t, 0), []int64{})
		f.knowsNothing(t)
		f.sets(t, "?1?", liking(part(0, entry("b", 1)), unlike("al", shard.KnownLike{}), like("bo", never), like("al", shard.KnownLike{})))
		f.knowsNothing(t)
		f.counts(t, 0, 1)
		f.pending(t, 0, "b", 1)
		// An earlier like of the batch makes a state known.
		f.sets(t, "10", liking(part(0), like("cy", never), like("cy", shard.KnownLike{})))
	},

	// What the ledger was asked before a window was finished does not hold what that window brought.
	"like/known from a snapshot that is too old": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		watermark := f.drained(t, 0)
		f.evictLikes(t, 0)
		old := never
		old.Watermark = watermark - 1
		f.sets(t, "?", liking(part(0), like("al", old)))
		f.knowsNothing(t)
		fresh := since(epochMicros)
		fresh.Watermark = watermark
		f.sets(t, "0", liking(part(0), like("al", fresh)))
		f.knows(t, 0, "al", state(true, f.now*1000, epochMicros))
		// What Redis knows goes before what the sender knows.
		f.sets(t, "1", liking(part(0), unlike("al", old)))
		f.sets(t, "1", liking(part(0), like("al", fresh)))
	},

	"like/supposed": func(t *testing.T, f *fixture) {
		supposed := shard.KnownLike{Source: shard.LikeSupposed}
		f.sets(t, "11", liking(part(0), like("al", supposed), unlike("bo", supposed)))
		f.counts(t, 0, 0)
		f.records(t, epochMS, map[string]shard.PendingLike{
			"al": state(true, epochMicros, epochMicros), "bo": state(false, epochMicros, epochMicros),
		})
		f.sets(t, "0011", liking(part(0), like("al", supposed), unlike("bo", supposed), unlike("al", supposed), like("bo", supposed)))
	},

	"like/a repeat is recorded in each window": func(t *testing.T, f *fixture) {
		old := since(5)
		f.sets(t, "00", liking(part(0), like("al", old), unlike("bo", never)))
		got := f.scan(t, 0, epochMS)
		equal(t, "deltas", got.Deltas, map[string]int64{})
		equal(t, "deltas of likes", got.LikeDeltas, map[string]int64{})
		first := map[string]shard.PendingLike{"al": state(true, epochMicros, 5), "bo": state(false, epochMicros, 0)}
		f.records(t, epochMS, first)
		f.advance(t, windowMS-1)
		f.sets(t, "00", liking(part(0), like("al", old), unlike("bo", never)))
		f.records(t, epochMS, first)
		f.advance(t, 1)
		f.sets(t, "00", liking(part(0), like("al", old), unlike("bo", never)))
		second := map[string]shard.PendingLike{"al": state(true, f.now*1000, 5), "bo": state(false, f.now*1000, 0)}
		f.records(t, f.now, second)
		f.knows(t, 0, "al", second["al"])
		// A change takes the place of a repeat.
		f.sets(t, "1", liking(part(0), unlike("al", old)))
		f.knows(t, 0, "al", state(false, f.now*1000+1, f.now*1000+1))
		f.counts(t, 0, -1)
	},

	// The last known moment may be ahead of the clock.
	"like/moments grow": func(t *testing.T, f *fixture) {
		ahead := since(epochMicros + 700)
		f.sets(t, "1", liking(part(0), unlike("al", ahead)))
		f.knows(t, 0, "al", state(false, epochMicros+701, epochMicros+701))
		f.sets(t, "01", liking(part(0), like("bo", ahead), unlike("cy", ahead)))
		f.knows(t, 0, "bo", state(true, epochMicros+701, epochMicros+700))
		f.advance(t, 1)
		f.sets(t, "1", liking(part(0), like("al", ahead)))
		f.knows(t, 0, "al", state(true, f.now*1000, f.now*1000))
	},

	"like/windows, newest first": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.advance(t, windowMS)
		second := f.now
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		f.evictLikes(t, 0)
		f.knows(t, 0, "al", state(false, second*1000, second*1000))
		f.sets(t, "0", liking(part(0), unlike("al", never)))
		f.advance(t, windowMS)
		f.evictLikes(t, 0)
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.counts(t, 0, 1)
		f.knows(t, 0, "al", state(true, f.now*1000, f.now*1000))
	},

	"like/membership of two hours": func(t *testing.T, f *fixture) {
		f.advance(t, hourMS-1)
		set := newLike(f.now * 1000)
		f.sets(t, "11", liking(part(0), like("al", never), like("bo", never)))
		f.drained(t, 0)
		f.knows(t, 0, "al", set)
		// A repeat renews it.
		f.set(t, epochMS+2*hourMS-windowMS-1)
		f.sets(t, "0", liking(part(0), like("bo", shard.KnownLike{})))
		again := state(true, f.now*1000, set.Micros)
		f.drained(t, epochMS+hourMS-1)
		f.knows(t, 0, "al", set)
		f.advance(t, 1)
		f.knowsNothing(t)
		f.sets(t, "?", liking(part(0), like("al", shard.KnownLike{})))
		f.knows(t, 0, "bo", again)
	},

	// Windows are looked into although the current bucket is older, if a like of theirs may be in the bucket of another hour.
	"like/set by a clock that was behind, in the hour before": func(t *testing.T, f *fixture) {
		start := (f.now/hourMS + 1) * hourMS
		first := start - windowMS*9/10
		f.set(t, first)
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.set(t, start+1) // the bucket of the hour is younger than the window
		f.sets(t, "1", liking(part(0), like("cy", never)))
		f.set(t, first+windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{first}})
		f.begin(t, 0, first, 0, "unused", false)
		f.endsWith(t, first, f.moveAll(t, first))
		f.sets(t, "1", liking(part(0), like("dy", never)))
		behind := start - windowMS/2
		f.set(t, behind)
		f.sets(t, "1", liking(part(0), like("bo", never)))
		f.evictLikes(t, 0)
		f.set(t, start+windowMS/2)
		f.knows(t, 0, "bo", newLike(behind*1000))
	},

	// What an older bucket knows must not come back when a newer one is evicted.
	"like/membership is in one bucket": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.advance(t, hourMS)
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		f.drained(t, 0)
		f.evictLikes(t, 1)
		f.knowsNothing(t)
	},

	"like/membership when the clock steps back": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		watermark := f.drained(t, 0)
		for _, back := range []int64{windowMS, 1} {
			f.set(t, epochMS-back)
			f.knows(t, 0, "al", newLike(epochMicros))
		}
		f.set(t, epochMS-windowMS-1)
		f.knowsNothing(t)
		f.set(t, epochMS-1)
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		f.set(t, epochMS+windowMS)
		f.drained(t, watermark)
		f.knows(t, 0, "al", state(false, epochMicros+1, epochMicros+1))
		f.evictLikes(t, -1)
		f.knowsNothing(t)
	},

	"like/membership after a rollback": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.sets(t, "1", liking(part(1), like("al", never)))
		f.drained(t, 0)
		f.seal(t, 0, f.now, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.knowsNothing(t)
		f.knows(t, 1, "al", newLike(epochMicros))
		f.advance(t, 1)
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.discard(t, 0, f.windows(t, 0)[0], "g1")
		f.knows(t, 0, "al", newLike(f.now*1000))
		f.restoreMarkers(t, 0, nil)
		f.knowsNothing(t)
	},

	"like/membership is swept": func(t *testing.T, f *fixture) {
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.drained(t, 0)
		known := func(want bool) {
			t.Helper()
			f.sweep(t, 0)
			now := f.now
			f.set(t, epochMS) // to see what is left
			values, err := f.Likes(t.Context(), []shard.PairGroup{{Shard: 0, Pairs: []counter.Pair{pair("al")}}})
			must(t, err)
			equal(t, "known", values[0][0].Known, want)
			f.set(t, now)
		}
		f.set(t, epochMS+2*hourMS)
		known(true)
		f.advance(t, 1)
		known(false)
	},

	"like/overflow": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64, Likes: 7})
		f.sets(t, "o", liking(part(0), like("al", never)))
		equal(t, "windows", f.windows(t, 0), []int64{})
		f.knowsNothing(t)
		// A repeat adds nothing, and what another like takes away makes room.
		f.sets(t, "o011o", liking(part(0), like("al", never), like("bo", since(5)), unlike("bo", since(5)),
			like("cy", never), like("al", never)))
		f.reads(t, 0, "a", shard.KeyValue{Value: math.MaxInt64, Likes: 7, Cached: true})
		f.sets(t, "1o", liking(part(0, entry("a", -1)), like("al", never), like("di", never)))
		f.load(t, 1, 0, shard.Base{Key: "a", Total: math.MinInt64})
		f.sets(t, "o1", liking(part(1), unlike("al", since(5)), like("bo", never)))
		f.sets(t, "1o", liking(part(1), unlike("al", since(5)), unlike("cy", since(5))))
	},

	// The total fits and what one window would hold of it does not.
	"like/overflow of a window": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: -10})
		f.add(t, 0, entry("a", math.MaxInt64))
		f.sets(t, "0", liking(part(0), like("bo", since(5))))
		f.sets(t, "10", liking(part(0, entry("b", 1)), like("al", never), like("bo", never)))
		f.holds(t, 0, epochMS, map[string]int64{"a": math.MaxInt64})
		f.holds(t, 0, epochMS+1, map[string]int64{"a": 1, "b": 1})
		f.records(t, epochMS+1, map[string]shard.PendingLike{
			"al": newLike(epochMicros), "bo": state(true, epochMicros+1, 5),
		})
		f.sets(t, "1", liking(part(0), unlike("al", never)))
		f.holds(t, 0, epochMS+1, map[string]int64{"a": 0, "b": 1})
		f.reads(t, 0, "a", shard.KeyValue{Value: math.MaxInt64 - 10, Cached: true})
	},

	// Entry and like together leave int64, though the total would not.
	"like/overflow of any window": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: -10})
		f.sets(t, "o", liking(part(0, entry("a", math.MaxInt64)), like("al", never)))
		f.reads(t, 0, "a", shard.KeyValue{Value: math.MaxInt64 - 10, Cached: true})
	},
}
