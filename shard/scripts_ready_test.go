package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

// ready has shard 0 ready for plain batches, which then do not look at the rest of its meta key.
func ready(t *testing.T, f *fixture) {
	t.Helper()
	for range 2 {
		f.add(t, 0, entry("ready", 1))
	}
}

// Whatever a plain batch must heed ends what the shard was ready for.
var readyCases = map[string]func(t *testing.T, f *fixture){
	"ready/a key is spread": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.spread(t, 0, []string{"hot"}, epochMS)
		for range 2 {
			f.refused(t, f.batch(part(0, entry("hot", 1))), shard.WriteReply{Moved: []shard.MovedEntry{{Marker: epochMS}}})
			f.add(t, 0, entry("cold", 1))
		}
	},

	"ready/a marker is loaded": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.load(t, 0, 0, shard.Base{Key: "hot", Marker: 7})
		f.refused(t, f.batch(part(0, entry("hot", 1))), shard.WriteReply{Moved: []shard.MovedEntry{{Marker: 7}}})
	},

	"ready/markers are restored": func(t *testing.T, f *fixture) {
		ready(t, f)
		before := f.batch(part(0, entry("a", 1)))
		must(t, f.RestoreMarkers(t.Context(), 0, nil))
		f.late(t, before)
		f.advance(t, 1)
		// The window is from before that moment, and stays open.
		ready(t, f)
		f.late(t, before)
		f.holds(t, 0, epochMS, map[string]int64{"ready": 4})
		f.advance(t, windowMS)
		ready(t, f)
		f.late(t, before)
		f.pending(t, 0, "a", 0)
	},

	"ready/a rollback is noticed by seal": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		ready(t, f)
		before := f.batch(part(0, entry("a", 1)))
		f.remember(0, shard.SealedWindow{ID: epochMS, Token: "another"})
		f.seal(t, 0, epochMS, "g", sealReply{RolledBack: true, RestoreDue: true, Windows: 1})
		f.late(t, before)
		f.advance(t, 1)
		ready(t, f)
		f.late(t, before)
	},

	"ready/the window is finished": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.begin(t, 0, epochMS, 0, "g", true) // by a token that was lost
		f.late(t, f.batch(part(0, entry("a", 1))))
		f.advance(t, 1)
		f.add(t, 0, entry("a", 1))
		f.holds(t, 0, epochMS+1, map[string]int64{"a": 1})
	},

	"ready/the window is discarded": func(t *testing.T, f *fixture) {
		ready(t, f)
		must(t, f.Discard(t.Context(), 0, epochMS, "g"))
		f.add(t, 0, entry("a", 1))
		f.holds(t, 0, epochMS+1, map[string]int64{"a": 1})
	},

	"ready/a base is big": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 1})
		f.add(t, 0, entry("a", 1))
		for range 2 {
			f.refused(t, f.batch(part(0, entry("a", 1))), overflowing(0))
			f.add(t, 0, entry("b", 1))
		}
	},

	"ready/a base becomes big": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 1<<53 - 1})
		f.add(t, 0, entry("a", 1<<52-1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		ready(t, f)
		f.move(t, 0, epochMS, entry("a", math.MaxInt64-1<<53))
		f.add(t, 0, entry("a", 1))
		f.refused(t, f.batch(part(0, entry("a", 1))), overflowing(0))
	},

	"ready/a pending delta becomes big": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 10})
		f.add(t, 0, entry("a", math.MaxInt64-20))
		f.refused(t, f.batch(part(0, entry("a", 11))), overflowing(0))
		f.add(t, 0, entry("a", 10))
	},

	"ready/a pending delta becomes big by small steps": func(t *testing.T, f *fixture) {
		const step, steps = 1<<52 - 1, 2_048 // below what is added with care
		for range steps {
			f.add(t, 0, entry("a", step))
		}
		f.refused(t, f.batch(part(0, entry("a", step))), overflowing(0))
		f.add(t, 0, entry("a", math.MaxInt64-steps*step))
	},

	"ready/another shard is not": func(t *testing.T, f *fixture) {
		ready(t, f)
		f.spread(t, 1, []string{"hot"}, epochMS)
		f.refused(t, f.batch(part(0, entry("a", 1)), part(1, entry("hot", 1))),
			shard.WriteReply{Moved: []shard.MovedEntry{{EntryRef: shard.EntryRef{Shard: 1}, Marker: epochMS}}})
		f.pending(t, 0, "a", 0)
		f.applied(t, f.batch(part(0, entry("a", 1), entry("b", -3)), part(2, entry("c", 5))))
		f.pending(t, 0, "b", -3)
		f.pending(t, 2, "c", 5)
	},
}
