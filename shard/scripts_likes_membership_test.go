package shard_test

import (
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

// membershipCases are about what membership says of pairs that it does not have.
var membershipCases = map[string]func(t *testing.T, f *fixture){
	// A snapshot of the ledger may be older than what was finished, if the bucket has all likes that came since.
	"like/membership has all since the snapshot": func(t *testing.T, f *fixture) {
		opened := int64(epochMS + 2*windowMS)
		f.set(t, opened)
		f.sets(t, "1", liking(part(0), like("al", never))) // opens a window, and the bucket with it
		before, at, older := never, never, never
		before.Watermark, at.Watermark, older.Watermark = opened-1, opened, opened-2
		f.drained(t, 0)
		f.sets(t, "?", liking(part(0), like("cy", older)))
		f.sets(t, "0", liking(part(0), like("al", before)))
		f.sets(t, "11", liking(part(0), like("bo", before), like("cy", at)))
		// The likes of this window that came before the bucket are not in it.
		f.evictLikes(t, 0)
		f.sets(t, "1", liking(part(0), like("di", at)))
		watermark := f.drained(t, opened)
		f.sets(t, "???", liking(part(0), like("al", at), like("bo", before), like("ed", at)))
		at.Watermark = watermark
		f.sets(t, "1", liking(part(0), like("ed", at)))
		// Nor need those be that came when another clock may have been in another hour.
		f.drained(t, watermark)
		f.set(t, epochMS+hourMS-windowMS)
		f.sets(t, "?", liking(part(0), like("flo", at)))
		f.set(t, epochMS+hourMS-windowMS-1)
		f.sets(t, "1", liking(part(0), like("flo", at)))
	},

	"like/membership of the hour has not what a clock that was behind set": func(t *testing.T, f *fixture) {
		f.set(t, epochMS+windowMS)
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.drained(t, 0)
		old := never
		old.Watermark = epochMS + 2*windowMS - 2
		last := int64(epochMS + windowMS)
		f.sets(t, "1", liking(part(0), like("bo", old))) // nothing later is finished
		f.drained(t, last)
		f.sets(t, "?", liking(part(0), like("cy", old)))
		old.Watermark++
		f.sets(t, "1", liking(part(0), like("cy", old)))
	},

	// What was noted before a rollback was noticed is not what counts, and a bucket from after it is younger than the snapshot.
	"like/membership from before a rollback": func(t *testing.T, f *fixture) {
		opened := int64(epochMS + 2*windowMS)
		f.set(t, opened)
		f.sets(t, "1", liking(part(0), like("al", never)))
		known := never
		known.Watermark = f.drained(t, 0)
		_, err := f.Seal(t.Context(), 0, shard.SealedWindow{ID: known.Watermark + windowMS, Token: "another"}, "g2")
		must(t, err)
		f.advance(t, 1)
		f.sets(t, "?", liking(part(0), like("bo", known)))
		fresh := known
		fresh.Watermark += windowMS
		f.sets(t, "1?", liking(part(0), like("bo", fresh), like("cy", known)))
		f.sets(t, "?", liking(part(0), like("cy", known)))
	},
}
