package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

// sealedWindow writes a=1, b=2 to a window of shard 0 on top of cached bases 10 and 20, and seals it.
func (f *fixture) sealedWindow(t testing.TB) (window int64) {
	t.Helper()
	window = f.now
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 10}, shard.Base{Key: "b", Total: 20})
	f.add(t, 0, entry("a", 1), entry("b", 2))
	f.advance(t, windowMS)
	f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{window}})
	return window
}

// finishedWindow takes that window through all steps.
func (f *fixture) finishedWindow(t testing.TB) (window int64) {
	t.Helper()
	window = f.sealedWindow(t)
	f.begin(t, 0, window, 0, "g", false)
	f.move(t, 0, window, entry("a", 1), entry("b", 2))
	f.end(t, 0, window)
	return window
}

func (f *fixture) end(t testing.TB, n int, window int64) {
	t.Helper()
	must(t, f.End(t.Context(), n, window, 0))
}

func (f *fixture) discard(t testing.TB, n int, window int64, gen string) {
	t.Helper()
	must(t, f.Discard(t.Context(), n, window, gen))
}

func (f *fixture) restoreMarkers(t testing.TB, n int, markers map[string]shard.Marker) {
	t.Helper()
	must(t, f.RestoreMarkers(t.Context(), n, markers))
}

var flushCases = map[string]func(t *testing.T, f *fixture){
	"seal/age": func(t *testing.T, f *fixture) {
		f.seal(t, 0, 0, "g", sealReply{})
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS-1)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1})
		f.add(t, 0, entry("a", 1))
		f.holds(t, 0, epochMS, map[string]int64{"a": 2})
		f.advance(t, 1)
		f.add(t, 0, entry("a", 4))
		for _, fresh := range []string{"first", "second"} {
			f.seal(t, 0, 0, fresh, sealReply{Windows: 2, Sealed: []int64{epochMS}})
			equal(t, "window", f.sealed(0, epochMS), shard.SealedWindow{ID: epochMS, Token: "first"})
		}
		f.seal(t, 1, 0, "g", sealReply{})
	},

	"seal/more": func(t *testing.T, f *fixture) {
		var windows []int64
		for range 65 {
			windows = append(windows, f.now)
			f.add(t, 0, entry("a", 1))
			f.advance(t, windowMS)
		}
		f.seal(t, 0, 0, "g", sealReply{Windows: 65, Sealed: windows[:64], More: true})
		f.advance(t, -windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 65, Sealed: windows[:64]})
		// The one that was not returned is sealed all the same.
		f.add(t, 0, entry("a", 1))
		f.holds(t, 0, windows[64], map[string]int64{"a": 1})
	},

	"finish": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.begin(t, 0, window, 0, "unused", false)
		f.cached(t, 0, "a", 11)
		f.move(t, 0, window, entry("a", 1))
		f.cached(t, 0, "a", 11)
		f.cached(t, 0, "b", 22)
		f.holds(t, 0, window, map[string]int64{"b": 2})
		// Not all was moved: the window stays.
		f.end(t, 0, window)
		f.holds(t, 0, window, map[string]int64{"b": 2})
		f.move(t, 0, window, entry("b", 2))
		f.end(t, 0, window)
		f.cached(t, 0, "a", 11)
		f.cached(t, 0, "b", 22)
		f.seal(t, 0, window, "unused", sealReply{})
	},

	"finish/every step again": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		for range 2 {
			f.begin(t, 0, window, 0, "unused", false)
		}
		for range 2 {
			f.move(t, 0, window, entry("a", 1))
		}
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window, entry("a", 1), entry("b", 2))
		for range 2 {
			f.end(t, 0, window)
		}
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window, entry("a", 1), entry("b", 2))
		f.discard(t, 0, window, "unused")
		f.cached(t, 0, "a", 11)
		f.cached(t, 0, "b", 22)
	},

	"finish/steps of another window": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.move(t, 0, window, entry("a", 1)) // before begin
		f.end(t, 0, window)
		f.begin(t, 0, window+1, 0, "unused", false) // there is no such window
		f.holds(t, 0, window, map[string]int64{"a": 1, "b": 2})
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window+1, entry("a", 1))
		f.end(t, 0, window+1)
		f.move(t, 1, window, entry("a", 1))
		f.holds(t, 0, window, map[string]int64{"a": 1, "b": 2})
		f.cached(t, 0, "a", 11)
	},

	"finish/what the ledger applied and not what was pending": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window, entry("a", 100), entry("b", 0), entry("c", 5))
		f.cached(t, 0, "a", 110)
		f.cached(t, 0, "b", 20)
		f.pending(t, 0, "c", 0)
	},

	"finish/a base that is not cached stays so": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.evict(t, "a")
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window, entry("a", 1), entry("b", 2))
		f.pending(t, 0, "a", 0)
	},

	"finish/move stops at the edge": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 5}, shard.Base{Key: "b", Total: math.MinInt64 + 5},
			shard.Base{Key: "c", Total: -1})
		f.add(t, 0, entry("a", 1), entry("b", -1), entry("c", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "unused", false)
		f.move(t, 0, epochMS, entry("a", 6), entry("b", math.MinInt64), entry("c", math.MinInt64+1))
		f.cached(t, 0, "a", math.MaxInt64)
		f.cached(t, 0, "b", math.MinInt64)
		f.cached(t, 0, "c", math.MinInt64)
	},

	"discard": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.discard(t, 0, window+1, "unused")
		f.cached(t, 0, "a", 11)
		f.discard(t, 0, window, "g1")
		f.pending(t, 0, "a", 0)
		f.holds(t, 0, window, map[string]int64{})
		equal(t, "loaded", f.load(t, 0, window-1, shard.Base{Key: "a"}), false)
		f.load(t, 0, window, shard.Base{Key: "a", Total: 11})
		f.discard(t, 0, window, "g2")
		f.cached(t, 0, "a", 11)
		// It is what is left of a crash, no rollback.
		f.seal(t, 0, window, "unused", sealReply{})
	},

	// The worker died right after the ledger applied the window: that is no rollback.
	"discard/applied and not begun": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.seal(t, 0, window, "unused", sealReply{Windows: 1, Sealed: []int64{window}})
		f.cached(t, 0, "a", 11)
		f.discard(t, 0, window, "g1")
		f.load(t, 0, window, shard.Base{Key: "a", Total: 11})
		f.cached(t, 0, "a", 11)
	},

	"discard/half moved": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.begin(t, 0, window, 0, "unused", false)
		f.move(t, 0, window, entry("a", 1))
		f.seal(t, 0, window, "unused", sealReply{Windows: 1, Sealed: []int64{window}})
		f.discard(t, 0, window, "g1")
		f.pending(t, 0, "a", 0)
		f.pending(t, 0, "b", 0)
		f.load(t, 0, window, shard.Base{Key: "b", Total: 22})
		f.cached(t, 0, "b", 22)
	},

	"shards are apart": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.applied(t, f.batch(claiming(part(0, entry("b", 5)), once(0, 1000, false, "old", "v"))))
		for n := 1; n <= 2; n++ {
			f.load(t, n, 0, shard.Base{Key: "a", Total: 100})
			f.add(t, n, entry("a", 1))
		}
		f.advance(t, windowMS)
		for n := 1; n <= 2; n++ {
			f.seal(t, n, 0, "g", sealReply{Windows: 1, Sealed: []int64{window + windowMS}})
		}
		f.begin(t, 1, window+windowMS, 0, "g", false)
		f.move(t, 1, window+windowMS, entry("a", 1))
		f.end(t, 1, window+windowMS)
		f.discard(t, 2, window+windowMS, "g")
		f.sweep(t, 1)
		f.cached(t, 1, "a", 101)
		f.pending(t, 2, "a", 0)
		f.cached(t, 0, "a", 11)
		f.cached(t, 0, "b", 27)
		f.refused(t, f.claims(once(0, 1000, false, "old", "v")), known("v"))
		f.seal(t, 0, 0, "g", sealReply{Windows: 2, Sealed: []int64{window, window + windowMS}})
	},

	"restore markers": func(t *testing.T, f *fixture) {
		f.spread(t, 0, []string{"a"}, epochMS)
		f.advance(t, windowMS)
		f.seal(t, 0, epochMS+1, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.advance(t, 10)
		f.seal(t, 0, epochMS+1, "g", sealReply{RestoreDue: true})
		for range 2 {
			f.restoreMarkers(t, 0, map[string]shard.Marker{"a": 5, "b": 6})
			f.reads(t, 0, "a", shard.KeyValue{Marker: epochMS})
			f.reads(t, 0, "b", shard.KeyValue{Marker: 6})
			f.seal(t, 0, epochMS+1, "g", sealReply{})
			// Ids may have been routed without the markers up to now.
			f.refused(t, f.batchAfter(claiming(part(0, entry("c", 1)), timed(f.now, "id", "v"))), aged(f.now))
			f.advance(t, 1)
		}
		// On a shard that had none, or has none.
		f.restoreMarkers(t, 1, map[string]shard.Marker{"b": 6})
		f.reads(t, 1, "b", shard.KeyValue{Marker: 6})
		f.restoreMarkers(t, 2, nil)
		f.advance(t, 1)
		f.refused(t, f.batch(part(1, entry("b", 1))), shard.WriteReply{Moved: []shard.MovedEntry{{Marker: 6}}})
		f.add(t, 2, entry("b", 1))
	},
}
