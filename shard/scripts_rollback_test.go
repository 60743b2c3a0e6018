package shard_test

import (
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

// noticed checks that a rollback was recorded at the moment of the clock.
func (f *fixture) noticed(t testing.TB) {
	t.Helper()
	f.refused(t, f.batchAfter(claiming(part(0, entry("x", 1)), timed(f.now, "new", "v"))), aged(f.now))
	f.late(t, f.batch(part(0, entry("x", 1))))
}

// batchAfter is a batch made a millisecond from now.
func (f *fixture) batchAfter(parts ...shard.ShardWrite) *shard.WriteBatch {
	b := f.batch(parts...)
	b.Made++
	return b
}

var rollbackCases = map[string]func(t *testing.T, f *fixture){
	"rollback/all was lost": func(t *testing.T, f *fixture) {
		window := f.finishedWindow(t)
		f.flushAll(t)
		f.seal(t, 0, window, "g1", sealReply{RolledBack: true, RestoreDue: true})
		f.noticed(t)
		f.restoreMarkers(t, 0, nil)
		f.seal(t, 0, window, "g2", sealReply{})
		// fin is set, and sealed.
		equal(t, "loaded", f.load(t, 0, window-1, shard.Base{Key: "a"}), false)
		f.load(t, 0, window, shard.Base{Key: "a", Total: 11})
		f.cached(t, 0, "a", 11)
	},

	"rollback/to before the window": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 10})
		restore := f.snapshot(t)
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		f.move(t, 0, epochMS, entry("a", 1))
		f.end(t, 0, epochMS)
		restore(t)
		f.cached(t, 0, "a", 10)
		f.add(t, 0, entry("a", 100))
		f.seal(t, 0, epochMS, "g1", sealReply{Windows: 1, RolledBack: true, RestoreDue: true})
		f.noticed(t)
		// The base is of another time; what was written since stays.
		f.pending(t, 0, "a", 100)
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 11})
		f.cached(t, 0, "a", 111)
	},

	"rollback/to the open window": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 10})
		f.add(t, 0, entry("a", 1))
		restore := f.snapshot(t)
		f.add(t, 0, entry("a", 2))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		f.begin(t, 0, epochMS, 0, "g", false)
		f.move(t, 0, epochMS, entry("a", 3))
		f.end(t, 0, epochMS)
		restore(t)
		// The clock of the other host is behind: the window is young, and the ledger has it all the same.
		f.advance(t, -1)
		f.seal(t, 0, epochMS, "g1", sealReply{RolledBack: true, RestoreDue: true})
		f.noticed(t)
		f.pending(t, 0, "a", 0)
		f.applied(t, f.batchAfter(part(0, entry("a", 100))))
		f.holds(t, 0, epochMS, map[string]int64{})
		f.advance(t, 1)
		f.seal(t, 0, epochMS, "g2", sealReply{Windows: 1, RestoreDue: true})
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 13})
		f.cached(t, 0, "a", 113)
	},

	// Two windows were sealed and pending, then drained, and a third after them.
	"rollback/to older windows": func(t *testing.T, f *fixture) {
		second, third := int64(epochMS+windowMS), int64(epochMS+2*windowMS)
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", 2))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 2, Sealed: []int64{epochMS, second}})
		f.advance(t, windowMS)
		f.add(t, 0, entry("a", 4))
		f.advance(t, 1)
		f.seal(t, 0, third, "g1", sealReply{Windows: 1, RolledBack: true, RestoreDue: true})
		f.noticed(t)
		f.holds(t, 0, epochMS, map[string]int64{})
		f.holds(t, 0, second, map[string]int64{})
		equal(t, "loaded", f.load(t, 0, second, shard.Base{Key: "a"}), false)
		equal(t, "loaded", f.load(t, 0, third, shard.Base{Key: "a", Total: 7}), true)
		f.cached(t, 0, "a", 11)
	},

	// The worker has read and applied a window; Redis went back to when it was open and held less.
	"rollback/between scan and begin": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		restore := f.snapshot(t)
		f.add(t, 0, entry("a", 2))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		restore(t)
		f.begin(t, 0, epochMS, 0, "g1", true)
		f.noticed(t)
		// Had the base been cached with the stale copy taken away, what is moved would not fit it.
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 3})
		f.move(t, 0, epochMS, entry("a", 3))
		f.end(t, 0, epochMS)
		f.cached(t, 0, "a", 3)
		f.seal(t, 0, epochMS, "g2", sealReply{RestoreDue: true})
		f.begin(t, 0, epochMS, 0, "g3", false)
		f.cached(t, 0, "a", 3)
	},

	// The same, and another worker notices it before the one that applied the window begins to finish it.
	"rollback/noticed by another worker between apply and begin": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		restore := f.snapshot(t)
		f.add(t, 0, entry("a", 2))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		applied := f.sealed(0, epochMS)
		restore(t)
		reply, err := f.Seal(t.Context(), 0, applied, "g1")
		must(t, err)
		equal(t, "rollback noticed", reply.RolledBack, true)
		f.begin(t, 0, epochMS, 0, "g2", false)
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 3})
		f.move(t, 0, epochMS, entry("a", 3))
		f.end(t, 0, epochMS)
		f.cached(t, 0, "a", 3)
	},

	"rollback/begin with a fin that does not follow": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.begin(t, 0, window, window-1, "g1", true)
		f.noticed(t)
		f.pending(t, 0, "a", 1)
		// The base can be loaded and the window moved as always.
		f.load(t, 0, window, shard.Base{Key: "a", Total: 51})
		f.cached(t, 0, "a", 51)
		f.begin(t, 0, window, window-1, "g2", false)
		f.move(t, 0, window, entry("a", 1), entry("b", 2))
		f.end(t, 0, window)
		f.cached(t, 0, "a", 51)
	},

	"rollback/to half moved": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		f.begin(t, 0, window, 0, "g1", false)
		f.move(t, 0, window, entry("a", 1))
		restore := f.snapshot(t)
		f.move(t, 0, window, entry("b", 2))
		f.end(t, 0, window)
		restore(t)
		f.cached(t, 0, "b", 22)
		// Nothing that the ledger has not is missing: the worker goes on.
		f.begin(t, 0, window, 0, "g1", false)
		f.move(t, 0, window, entry("a", 1), entry("b", 2))
		f.end(t, 0, window)
		f.cached(t, 0, "a", 11)
		f.cached(t, 0, "b", 22)
		f.seal(t, 0, window, "g2", sealReply{})
	},

	"rollback/ahead of a ledger that went back": func(t *testing.T, f *fixture) {
		window := f.finishedWindow(t)
		f.add(t, 0, entry("a", 5))
		next := f.now
		f.advance(t, windowMS)
		f.seal(t, 0, window-1, "g1", sealReply{Windows: 1, Sealed: []int64{next}})
		equal(t, "loaded", f.load(t, 0, window-1, shard.Base{Key: "c"}), false)
		f.begin(t, 0, next, window-1, "g2", true)
		f.load(t, 0, next, shard.Base{Key: "a", Total: 15})
		f.cached(t, 0, "a", 15)
	},

	"rollback/fin never goes back": func(t *testing.T, f *fixture) {
		window := f.sealedWindow(t)
		next := f.now
		f.add(t, 0, entry("a", 5))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 2, Sealed: []int64{window, next}})
		f.discard(t, 0, next, "g1")
		f.begin(t, 0, window, 0, "g2", true)
		f.discard(t, 0, window, "g3")
		equal(t, "loaded", f.load(t, 0, next-1, shard.Base{Key: "a", Total: 11}), false)
		equal(t, "loaded", f.load(t, 0, next, shard.Base{Key: "a", Total: 16}), true)
		f.cached(t, 0, "a", 16)
	},
}
