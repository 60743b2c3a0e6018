package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

func entry(key string, delta int64) counter.Entry { return counter.Entry{Key: key, Delta: delta} }

func part(n int, entries ...counter.Entry) shard.ShardWrite {
	return shard.ShardWrite{Shard: n, Entries: entries}
}

var writeCases = map[string]func(t *testing.T, f *fixture){
	"write/windows": func(t *testing.T, f *fixture) {
		f.add(t, 1, entry("a", 2), entry("b", -1))
		f.advance(t, windowMS-1)
		f.add(t, 1, entry("a", 3))
		f.holds(t, 1, epochMS, map[string]int64{"a": 5, "b": -1})
		f.advance(t, 1)
		f.add(t, 1, entry("a", 7))
		f.holds(t, 1, epochMS, map[string]int64{"a": 5, "b": -1})
		f.holds(t, 1, epochMS+windowMS, map[string]int64{"a": 7})
		f.pending(t, 1, "a", 12)
		f.pending(t, 0, "a", 0)
	},

	"write/not into a sealed window": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		// The clock of another host is behind.
		f.advance(t, -1)
		f.add(t, 0, entry("a", 2))
		f.holds(t, 0, epochMS, map[string]int64{"a": 1})
		f.holds(t, 0, epochMS+windowMS-1, map[string]int64{"a": 2})
		f.advance(t, -windowMS)
		f.add(t, 0, entry("a", 4))
		f.holds(t, 0, epochMS+windowMS-1, map[string]int64{"a": 6})
	},

	"write/ids follow what was sealed and finished": func(t *testing.T, f *fixture) {
		f.seal(t, 0, epochMS+100, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.advance(t, 1)
		f.add(t, 0, entry("a", 1))
		f.holds(t, 0, epochMS+101, map[string]int64{"a": 1})
	},

	"write/delta that cancels out": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 5))
		f.add(t, 0, entry("a", -5))
		f.holds(t, 0, epochMS, map[string]int64{"a": 0})
	},

	"write/repeated batch": func(t *testing.T, f *fixture) {
		b := f.batch(part(1, entry("a", 1)), part(0, entry("a", 2)))
		for range 3 {
			f.applied(t, b)
			f.advance(t, windowMS)
		}
		// Even when a copy is too late, the claim that it meets tells its sender the truth.
		f.advance(t, 30_000)
		f.applied(t, b)
		f.pending(t, 1, "a", 1)
		f.pending(t, 0, "a", 2)
		f.add(t, 1, entry("a", 1))
		f.pending(t, 1, "a", 2)
	},

	"write/late": func(t *testing.T, f *fixture) {
		b := f.batch(part(0, entry("a", 1)))
		for _, off := range []int64{-10_001, 10_001} {
			b.Made = f.now + off
			f.late(t, b)
		}
		f.pending(t, 0, "a", 0)
		b.Made = f.now - 10_000
		f.applied(t, b)
		b = f.batch(part(0, entry("a", 1)))
		b.Made = f.now + 10_000
		f.applied(t, b)
		f.pending(t, 0, "a", 2)
	},

	"write/made before a rollback was noticed": func(t *testing.T, f *fixture) {
		f.seal(t, 1, epochMS-1, "g", sealReply{RolledBack: true, RestoreDue: true})
		b := f.batch(part(0, entry("a", 1)), part(1, entry("a", 1)))
		f.late(t, b)
		f.advance(t, 1)
		f.late(t, b)
		f.pending(t, 0, "a", 0)
		b.Made = f.now
		f.applied(t, b)
	},

	"write/all or nothing": func(t *testing.T, f *fixture) {
		f.applied(t, f.batch(claiming(part(2, entry("c", 1)), opaque("id", "v"))))
		b := f.batch(part(0, entry("a", 1)), claiming(part(2, entry("b", 1)), opaque("id", "v")))
		f.refused(t, b, shard.WriteReply{Known: []shard.KnownClaim{{Shard: 1, Value: "v"}}})
		f.pending(t, 0, "a", 0)
		f.pending(t, 2, "b", 0)
		// The refusal left no claim of the batch either.
		b.Shards[1].Claims = nil
		f.applied(t, b)
		f.pending(t, 0, "a", 1)
		f.pending(t, 2, "b", 1)
	},

	"write/positions of entries, of which the first have a delta of 1": func(t *testing.T, f *fixture) {
		f.spread(t, 1, []string{"one", "more"}, shard.Marker(f.now), shard.Marker(f.now))
		f.add(t, 0, entry("big", math.MaxInt64))
		mixed := part(1, entry("a", 1), entry("one", 1), entry("b", 5), entry("c", 1), entry("more", 7))
		f.refused(t, f.batch(mixed), shard.WriteReply{Moved: []shard.MovedEntry{
			{EntryRef: shard.EntryRef{Entry: 1}, Marker: shard.Marker(f.now)}, {EntryRef: shard.EntryRef{Entry: 4}, Marker: shard.Marker(f.now)},
		}})
		f.refused(t, f.batch(part(0, entry("a", 1), entry("big", 1), entry("b", 2))), overflowing(1))
		f.refused(t, f.batch(part(0, entry("a", 1), entry("b", 2), entry("big", 3))), overflowing(2))
		mixed.Markers = []shard.Marker{0, shard.Marker(f.now), 0, 0, shard.Marker(f.now)}
		f.applied(t, f.batch(mixed))
		for i, e := range mixed.Entries {
			f.reads(t, 1, e.Key, shard.KeyValue{Value: e.Delta, Marker: mixed.Markers[i]})
		}
	},

	"write/every reason at once": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("big", math.MaxInt64))
		f.applied(t, f.batch(claiming(part(1, entry("c", 1)), opaque("id", "v"))))
		f.spread(t, 1, []string{"hot"}, shard.Marker(f.now))
		f.refused(t, f.batch(
			part(0, entry("small", 1), entry("big", 1)),
			claiming(part(1, entry("cold", 1), entry("hot", 1)),
				opaque("new", "w", "id", "w"), timed(epochMS-dedupeMS-60_000, "old", "v")),
		), shard.WriteReply{
			Known:       []shard.KnownClaim{{Shard: 1, Group: 0, Field: 1, Value: "v"}},
			Moved:       []shard.MovedEntry{{EntryRef: shard.EntryRef{Shard: 1, Entry: 1}, Marker: shard.Marker(f.now)}},
			Aged:        []shard.AgedGroup{{Shard: 1, Group: 1}},
			Overflowing: []shard.EntryRef{{Shard: 0, Entry: 1}},
		})
	},

	"write/markers": func(t *testing.T, f *fixture) {
		ref := shard.EntryRef{Shard: 0, Entry: 1}
		marked := part(0, entry("x", 1), entry("hot", 1))
		// One that the sender knows and the shard does not.
		marked.Markers = []shard.Marker{0, epochMS}
		f.refused(t, f.batch(marked), shard.WriteReply{Moved: []shard.MovedEntry{{EntryRef: ref}}})
		// One that the shard knows and the sender does not, or not the same.
		f.spread(t, 0, []string{"hot"}, epochMS)
		for _, known := range [][]shard.Marker{nil, {0, 0}, {0, epochMS - 1}} {
			marked.Markers = known
			f.refused(t, f.batch(marked), shard.WriteReply{Moved: []shard.MovedEntry{{EntryRef: ref, Marker: epochMS}}})
		}
		f.pending(t, 0, "x", 0)
		marked.Markers = []shard.Marker{0, epochMS}
		f.applied(t, f.batch(marked))
		f.reads(t, 0, "hot", shard.KeyValue{Value: 1, Marker: epochMS})
		// Another shard has no markers.
		f.add(t, 1, entry("hot", 1))
	},

	"write/bytes": func(t *testing.T, f *fixture) {
		key, field, value := "k\x00\xff\r\n{}*", "f\x00\xff\r\n", "v\x00\xff\r\n"
		f.applied(t, f.batch(claiming(part(0, entry(key, 3)), opaque(field, value))))
		f.refused(t, f.batch(claiming(part(0, entry(key, 3)), opaque(field, "other"))),
			shard.WriteReply{Known: []shard.KnownClaim{{Value: value}}})
		f.spread(t, 0, []string{key}, shard.Marker(f.now))
		f.holds(t, 0, epochMS, map[string]int64{key: 3})
		equal(t, "markers", f.scan(t, 0, epochMS).Markers, map[string]shard.Marker{key: epochMS})
		f.load(t, 0, 0, shard.Base{Key: key, Total: 10})
		f.reads(t, 0, key, shard.KeyValue{Value: 13, Cached: true, Marker: epochMS})
	},

	"overflow/one window": func(t *testing.T, f *fixture) {
		for _, edge := range []int64{math.MaxInt64, math.MinInt64} {
			key, step := "up", int64(1)
			if edge < 0 {
				key, step = "down", -1
			}
			f.add(t, 0, entry(key, edge-step))
			f.add(t, 0, entry(key, step))
			f.pending(t, 0, key, edge)
			f.refused(t, f.batch(part(0, entry(key, step))), overflowing(0))
			f.refused(t, f.batch(part(0, entry(key, edge))), overflowing(0))
			f.add(t, 0, entry(key, -step))
			f.pending(t, 0, key, edge-step)
		}
	},

	"overflow/one big delta": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1), entry("b", -1))
		f.refused(t, f.batch(part(0, entry("x", 1), entry("a", math.MaxInt64), entry("b", math.MinInt64))), overflowing(1, 2))
		f.pending(t, 0, "x", 0)
		f.add(t, 0, entry("a", math.MaxInt64-1), entry("b", math.MinInt64+1))
	},

	"overflow/base and several windows": func(t *testing.T, f *fixture) {
		for _, sign := range []int64{1, -1} {
			f.flushAll(t)
			f.load(t, 0, 0, shard.Base{Key: "a", Total: sign * (1<<62 + 5)})
			// 2^62 + 5 + 3·2^60 leaves 2^60 - 6 up to the edge, one more on the way down.
			for range 3 {
				f.add(t, 0, entry("a", sign<<60))
				f.advance(t, windowMS)
			}
			left := int64(1<<60 - 6)
			if sign < 0 {
				left++
			}
			f.refused(t, f.batch(part(0, entry("a", sign*(left+1)))), overflowing(0))
			f.refused(t, f.batch(part(0, entry("b", 1), entry("a", sign*(left+1)))), overflowing(1))
			f.add(t, 0, entry("a", sign*left))
			want := int64(math.MaxInt64)
			if sign < 0 {
				want = math.MinInt64
			}
			f.cached(t, 0, "a", want)
			f.refused(t, f.batch(part(0, entry("a", sign))), overflowing(0))
		}
	},

	"overflow/base alone, small deltas": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 1}, shard.Base{Key: "b", Total: math.MinInt64 + 1})
		f.add(t, 0, entry("a", 1), entry("b", -1))
		f.refused(t, f.batch(part(0, entry("a", 1), entry("c", 1), entry("b", -1))), overflowing(0, 2))
		f.add(t, 0, entry("a", -1), entry("b", 1))
	},

	"overflow/moved into the base": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 1<<53 - 1})
		f.add(t, 0, entry("a", 1<<52-1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		f.move(t, 0, epochMS, entry("a", math.MaxInt64-1<<53))
		f.cached(t, 0, "a", math.MaxInt64-1)
		f.add(t, 0, entry("a", 1))
		f.refused(t, f.batch(part(0, entry("a", 1))), overflowing(0))
	},

	// The total fits, and what is pending in the window does not: a new window takes it.
	"overflow/pending": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MinInt64}, shard.Base{Key: "b", Total: math.MaxInt64})
		f.add(t, 0, entry("a", math.MaxInt64), entry("b", math.MinInt64))
		f.add(t, 0, entry("x", 1), entry("a", 1), entry("b", -1))
		f.cached(t, 0, "a", 0)
		f.cached(t, 0, "b", -2)
		f.holds(t, 0, epochMS, map[string]int64{"a": math.MaxInt64, "b": math.MinInt64})
		f.holds(t, 0, epochMS+1, map[string]int64{"x": 1, "a": 1, "b": -1})
		// The window that was left takes no more, and is sealed in its turn.
		f.add(t, 0, entry("x", 1))
		f.holds(t, 0, epochMS+1, map[string]int64{"x": 2, "a": 1, "b": -1})
		f.advance(t, windowMS+1)
		f.seal(t, 0, 0, "g", sealReply{Windows: 2, Sealed: []int64{epochMS, epochMS + 1}})
	},

	"overflow/by many small deltas": func(t *testing.T, f *fixture) {
		const step = 1<<52 - 1 // below what is added with care
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 3*step}, shard.Base{Key: "b", Total: -3})
		for range 3 {
			f.add(t, 0, entry("a", step), entry("b", step))
		}
		f.refused(t, f.batch(part(0, entry("b", step), entry("a", 1))), overflowing(1))
		f.cached(t, 0, "a", math.MaxInt64)
	},

	"overflow/is not seen without a base": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64})
		f.cached(t, 0, "a", math.MaxInt64)
		f.refused(t, f.batch(part(0, entry("a", 1))), overflowing(0))
		f.evict(t, "a")
		f.add(t, 0, entry("a", 1))
		f.pending(t, 0, "a", 2)
	},
}

func overflowing(entries ...int) shard.WriteReply {
	var reply shard.WriteReply
	for _, e := range entries {
		reply.Overflowing = append(reply.Overflowing, shard.EntryRef{Entry: e})
	}
	return reply
}
