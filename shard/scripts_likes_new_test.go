package shard_test

import (
	"math"
	"testing"

	"github.com/plusone-dev/plusone/shard"
)

// newLike is the state of a like of a pair that was never set before.
func newLike(micros int64) shard.PendingLike {
	return shard.PendingLike{Liked: true, New: true, Micros: micros, Since: micros}
}

// unliked is what the sender knows of a pair that has been unliked since a moment (in µs).
func unliked(micros int64) shard.KnownLike {
	known := since(micros)
	known.Liked = false
	return known
}

// dated gives a like a moment (in µs).
func dated(l shard.LikeWrite, at int64) shard.LikeWrite {
	l.At = at
	return l
}

var newLikeCases = map[string]func(t *testing.T, f *fixture){
	"like/new": func(t *testing.T, f *fixture) {
		supposed := shard.KnownLike{Source: shard.LikeSupposed}
		f.sets(t, "1101101", liking(part(0), like("al", never), like("bo", never), unlike("cy", never), like("di", unliked(5)),
			like("ed", supposed), like("fi", since(5)), unlike("gi", since(0))))
		now := state(true, epochMicros, epochMicros)
		f.records(t, epochMS, map[string]shard.PendingLike{
			"al": newLike(epochMicros), "bo": newLike(epochMicros), "cy": state(false, epochMicros, 0),
			"di": now, "ed": now, "fi": state(true, epochMicros, 5), "gi": state(false, epochMicros, epochMicros),
		})
		// What the shard knows goes before what the ledger knew.
		f.sets(t, "101", liking(part(0), like("cy", never), like("bo", never), unlike("al", never)))
		f.knows(t, 0, "cy", state(true, epochMicros+1, epochMicros+1))
		f.knows(t, 0, "bo", newLike(epochMicros))
		f.sets(t, "1", liking(part(0), like("al", never)))
		f.knows(t, 0, "al", state(true, epochMicros+2, epochMicros+2))
	},

	"like/new, one of several of a pair": func(t *testing.T, f *fixture) {
		f.sets(t, "111100111", liking(part(0),
			like("al", never), unlike("al", never),
			like("bo", never), unlike("bo", never), unlike("cy", never), unlike("cy", never), like("cy", never), like("bo", never),
			like("di", never)))
		f.records(t, epochMS, map[string]shard.PendingLike{
			"al": state(false, epochMicros+1, epochMicros+1), "bo": state(true, epochMicros+2, epochMicros+2),
			"cy": newLike(epochMicros), "di": newLike(epochMicros),
		})
		f.sets(t, "100", liking(part(0), like("ed", never), like("ed", never), like("ed", never)))
		f.knows(t, 0, "ed", newLike(epochMicros))
	},

	"like/new in one window alone": func(t *testing.T, f *fixture) {
		f.sets(t, "11", liking(part(0), like("al", never), like("bo", never)))
		f.drained(t, 0)
		f.sets(t, "01", liking(part(0), like("al", never), unlike("bo", never)))
		f.records(t, f.now, map[string]shard.PendingLike{
			"al": state(true, f.now*1000, epochMicros), "bo": state(false, f.now*1000, f.now*1000),
		})
		f.sets(t, "1", liking(part(0), like("bo", never)))
		f.knows(t, 0, "bo", state(true, f.now*1000+1, f.now*1000+1))
	},

	"like/new with a moment": func(t *testing.T, f *fixture) {
		f.sets(t, "1110", liking(part(0), dated(like("al", never), 7), dated(like("bo", unliked(5)), 7), dated(like("cy", never), 8),
			dated(unlike("cy", never), 8)))
		f.records(t, epochMS, map[string]shard.PendingLike{"al": newLike(7), "bo": state(true, 7, 7), "cy": newLike(8)})
	},

	// Where a total may overflow, likes are decided one by one.
	"like/new at the edge": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: math.MaxInt64 - 1})
		f.sets(t, "1oo", liking(part(0), like("al", never), like("bo", never), like("cy", never)))
		f.sets(t, "1", liking(part(0, entry("a", -1)), like("bo", never)))
		f.records(t, epochMS, map[string]shard.PendingLike{"al": newLike(epochMicros), "bo": newLike(epochMicros)})
	},
}
