package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

func (f *fixture) homes(t testing.TB, n int, keys []string, want shard.HomeReply) {
	t.Helper()
	got, err := f.Homes(t.Context(), []shard.KeyGroup{{Shard: n, Keys: keys}})
	must(t, err)
	equal(t, "home's answer", got, []shard.HomeReply{want})
}

var readCases = map[string]func(t *testing.T, f *fixture){
	"homes/the newest window when a key was last marked": func(t *testing.T, f *fixture) {
		keys, marker := []string{"hot", "cold"}, shard.Marker(f.now)
		f.homes(t, 0, keys, shard.HomeReply{Marked: math.MaxInt64, Markers: []shard.Marker{0, 0}})
		f.add(t, 0, entry("hot", 1))
		f.spread(t, 0, keys[:1], marker)
		f.homes(t, 0, keys, shard.HomeReply{Marked: epochMS, Markers: []shard.Marker{marker, 0}})
		// What comes later is no like of a pair that is elsewhere.
		f.advance(t, windowMS)
		f.add(t, 0, entry("cold", 1))
		f.homes(t, 0, keys, shard.HomeReply{Marked: epochMS, Markers: []shard.Marker{marker, 0}})
		// Until another key is marked, by whatever brings its marker.
		f.load(t, 0, f.now, shard.Base{Key: "cold", Marker: 7})
		f.homes(t, 0, keys, shard.HomeReply{Marked: epochMS + windowMS, Markers: []shard.Marker{marker, 7}})
	},

	"homes/markers that are put back": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		must(t, f.RestoreMarkers(t.Context(), 0, map[string]shard.Marker{"hot": 5}))
		f.homes(t, 0, []string{"hot"}, shard.HomeReply{Marked: epochMS, Markers: []shard.Marker{5}})
		must(t, f.RestoreMarkers(t.Context(), 1, map[string]shard.Marker{"hot": 5}))
		f.homes(t, 1, []string{"hot"}, shard.HomeReply{Markers: []shard.Marker{5}})
		// What was finished before is no less the home's for being in no window any more.
		watermark := f.drained(t, 0)
		must(t, f.RestoreMarkers(t.Context(), 0, map[string]shard.Marker{"cold": 6}))
		f.homes(t, 0, []string{"hot", "cold"}, shard.HomeReply{Marked: watermark, Markers: []shard.Marker{5, 6}})
	},

	"read/shards and keys": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 100}, shard.Base{Key: "zero"})
		f.add(t, 0, entry("a", 1), entry("b", 2))
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", 10), entry("zero", -5))
		f.add(t, 3, entry("a", 1000))
		f.spread(t, 0, []string{"a"}, shard.Marker(f.now))
		got, err := f.Read(t.Context(), []shard.KeyGroup{
			{Shard: 3, Keys: []string{"a", "b"}, Away: true},
			{Shard: 0, Keys: []string{"zero", "b", "a", "c"}},
			{Shard: 0, Keys: []string{"a"}, Away: true},
		})
		must(t, err)
		micros := f.now * 1000
		equal(t, "answers", got, []shard.ReadReply{
			{Micros: micros, Values: []shard.KeyValue{{Value: 1000}, {}}},
			{Micros: micros, Values: []shard.KeyValue{
				{Value: -5, Cached: true}, {Value: 2}, {Value: 111, Cached: true, Marker: shard.Marker(f.now)}, {},
			}},
			{Micros: micros, Values: []shard.KeyValue{{Value: 111, Cached: true}}},
		})
	},

	"read/sums beyond int64 on the way": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64}, shard.Base{Key: "b", Total: math.MinInt64})
		f.add(t, 0, entry("a", math.MinInt64), entry("b", math.MaxInt64))
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", math.MaxInt64), entry("b", math.MinInt64+1))
		f.cached(t, 0, "a", math.MaxInt64-1)
		f.cached(t, 0, "b", math.MinInt64)
	},

	"read/too many keys": func(t *testing.T, f *fixture) {
		group := shard.KeyGroup{Shard: 0, Keys: make([]string, 4_000)}
		for i := range group.Keys {
			group.Keys[i] = "k"
		}
		f.add(t, 0, entry("k", 1))
		f.spread(t, 0, []string{"k"}, epochMS)
		f.load(t, 0, 0, shard.Base{Key: "k", Total: 1})
		f.add(t, 3, entry("k", 5))
		last := func(want, elsewhere shard.KeyValue) {
			t.Helper()
			got, err := f.Read(t.Context(), []shard.KeyGroup{{Shard: 3, Keys: group.Keys, Away: true}, group})
			must(t, err)
			equal(t, "last of the most keys", got[1].Values[3_999], want)
			equal(t, "last of the most keys elsewhere", got[0].Values[3_999], elsewhere)
		}
		last(shard.KeyValue{Value: 2, Cached: true, Marker: epochMS}, shard.KeyValue{Value: 5})
		likeOf := marked(like("al", never), epochMS)
		likeOf.Key = "k"
		f.answers(t, "1", f.batch(liking(part(0), likeOf)))
		last(shard.KeyValue{Value: 3, Likes: 1, Cached: true, Marker: epochMS}, shard.KeyValue{Value: 5})
		group.Keys = append(group.Keys, "k")
		if _, err := f.Read(t.Context(), []shard.KeyGroup{group}); err == nil {
			t.Error("a key too many was read")
		}
	},

	"load/takes away what was applied and is still pending": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1), entry("b", 5))
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", 10))
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", 100))
		f.advance(t, windowMS)
		second := int64(epochMS + windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 3, Sealed: []int64{epochMS, second, second + windowMS}})
		// The ledger applied the first two windows: its totals hold 11 of what is pending of a.
		equal(t, "loaded", f.load(t, 0, second, shard.Base{Key: "a", Total: 1011}, shard.Base{Key: "b", Total: 5}), true)
		f.cached(t, 0, "a", 1111)
		f.cached(t, 0, "b", 5)
	},

	"load/does not overwrite": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 7})
		equal(t, "loaded", f.load(t, 0, 9, shard.Base{Key: "a", Total: 8}, shard.Base{Key: "b", Total: 9}), true)
		f.cached(t, 0, "a", 7)
		f.cached(t, 0, "b", 9)
		f.evict(t, "a")
		f.pending(t, 0, "a", 0)
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 8})
		f.cached(t, 0, "a", 8)
	},

	"load/refuses an older snapshot than what is being moved": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		equal(t, "loaded", f.load(t, 0, epochMS-1, shard.Base{Key: "a", Total: 7, Marker: 5}), false)
		f.pending(t, 0, "a", 1)
		equal(t, "loaded", f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 7}), true)
		f.cached(t, 0, "a", 7)
		equal(t, "loaded on another shard", f.load(t, 1, 0, shard.Base{Key: "a"}), true)
	},

	"load/marker": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 7, Marker: 5})
		f.reads(t, 0, "a", shard.KeyValue{Value: 7, Cached: true, Marker: 5})
		// It does not replace a marker, and comes back even if the base is there.
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 7, Marker: 6})
		f.reads(t, 0, "a", shard.KeyValue{Value: 7, Cached: true, Marker: 5})
		f.load(t, 1, 0, shard.Base{Key: "a", Total: 7})
		f.load(t, 1, 0, shard.Base{Key: "a", Total: 8, Marker: 6})
		f.reads(t, 1, "a", shard.KeyValue{Value: 7, Cached: true, Marker: 6})
	},

	"load/stops at the edge": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", -2), entry("b", 2), entry("c", -1), entry("d", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: math.MaxInt64 - 1}, shard.Base{Key: "b", Total: math.MinInt64 + 1},
			shard.Base{Key: "c", Total: math.MaxInt64 - 1}, shard.Base{Key: "d", Total: math.MinInt64 + 1})
		for key, want := range map[string]int64{
			"a": math.MaxInt64 - 2, "b": math.MinInt64 + 2, "c": math.MaxInt64 - 1, "d": math.MinInt64 + 1,
		} {
			f.cached(t, 0, key, want)
		}
	},

	"spread/limit": func(t *testing.T, f *fixture) {
		f.spread(t, 0, []string{"a", "b"}, epochMS, epochMS)
		f.advance(t, 10)
		f.spread(t, 0, []string{"a", "c", "d", "b"}, epochMS, epochMS+10, 0, epochMS)
		f.advance(t, 10)
		f.spread(t, 0, []string{"d", "c"}, 0, epochMS+10)
		f.spread(t, 1, []string{"d"}, epochMS+20)
		f.reads(t, 0, "d", shard.KeyValue{})
	},

	"spread/width": func(t *testing.T, f *fixture) {
		const widest = shard.MaxShards - 1
		for key, width := range map[string]int{"few": 2, "most": widest} {
			want := shard.NewMarker(epochMS, width)
			markers, err := f.Spread(t.Context(), 0, []string{key}, width)
			must(t, err)
			equal(t, "markers", markers, []shard.Marker{want})
			// It stays, whatever is asked for later.
			f.spread(t, 0, []string{key}, want)
			equal(t, "in the window", f.scan(t, 0, epochMS).Markers[key], want)
			f.reads(t, 0, key, shard.KeyValue{Marker: want})
			refused := shard.WriteReply{Moved: []shard.MovedEntry{{Marker: want}}}
			f.refused(t, f.batch(part(0, entry(key, 1))), refused)
			p, likeOf := part(0, entry(key, 1)), like("al", never)
			likeOf.Key = key
			p.Markers = []shard.Marker{epochMS}
			f.refused(t, f.batch(p), refused)
			f.refused(t, f.batch(liking(part(0), marked(likeOf, want-1))), refused)
			p.Markers = []shard.Marker{want}
			f.applied(t, f.batch(p))
			f.answers(t, "1", f.batch(liking(part(0), marked(likeOf, want))))
		}
		f.restoreMarkers(t, 1, map[string]shard.Marker{"few": shard.NewMarker(epochMS, 3)})
		f.reads(t, 1, "few", shard.KeyValue{Marker: shard.NewMarker(epochMS, 3)})
		f.load(t, 3, 0, shard.Base{Key: "few", Marker: shard.ImpliedMarker})
		f.reads(t, 3, "few", shard.KeyValue{Cached: true, Marker: epochMS})
		f.advance(t, 10)
		f.load(t, 3, 0, shard.Base{Key: "few", Marker: shard.ImpliedMarker})
		f.reads(t, 3, "few", shard.KeyValue{Cached: true, Marker: epochMS})
		f.load(t, 2, 0, shard.Base{Key: "few", Marker: shard.NewMarker(epochMS, widest)})
		f.reads(t, 2, "few", shard.KeyValue{Cached: true, Marker: shard.NewMarker(epochMS, widest)})
	},

	"spread/through the window": func(t *testing.T, f *fixture) {
		f.spread(t, 0, []string{"a"}, epochMS)
		f.advance(t, windowMS-1)
		f.spread(t, 0, []string{"b", "a"}, shard.Marker(f.now), epochMS)
		f.advance(t, 1)
		f.spread(t, 0, []string{"c"}, shard.Marker(f.now))
		equal(t, "first window", f.scan(t, 0, epochMS).Markers, map[string]shard.Marker{"a": epochMS, "b": epochMS + windowMS - 1})
		equal(t, "second window", f.scan(t, 0, f.now).Markers, map[string]shard.Marker{"c": shard.Marker(f.now)})

		// A window of markers alone is finished like any other.
		f.seal(t, 0, 0, "g", sealReply{Windows: 2, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		must(t, f.Move(t.Context(), 0, epochMS, shard.Moves{Markers: []string{"a"}}))
		must(t, f.End(t.Context(), 0, epochMS, 0))
		f.seal(t, 0, epochMS, "g", sealReply{Windows: 2, Sealed: []int64{epochMS}})
		must(t, f.Move(t.Context(), 0, epochMS, shard.Moves{Markers: []string{"a", "b"}}))
		must(t, f.End(t.Context(), 0, epochMS, 0))
		f.seal(t, 0, epochMS, "g", sealReply{Windows: 1})
		f.reads(t, 0, "b", shard.KeyValue{Marker: epochMS + windowMS - 1})
	},

	"spread/nothing to mark opens no window": func(t *testing.T, f *fixture) {
		f.spread(t, 0, []string{"a", "b", "c"}, epochMS, epochMS, epochMS)
		f.advance(t, windowMS)
		f.spread(t, 0, []string{"c", "d"}, epochMS, 0)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
	},
}
