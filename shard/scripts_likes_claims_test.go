package shard_test

import (
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

// marked says that the sender knows the marker of a like's key.
func marked(l shard.LikeWrite, marker shard.Marker) shard.LikeWrite {
	l.Marker = marker
	return l
}

// hasClaim checks what is kept with a request id.
func (f *fixture) hasClaim(t testing.TB, id, want string) {
	t.Helper()
	kept := f.claimed(t, 0, counter.ParseRequestID(id), f.now)
	equal(t, "claim of "+id, kept, shard.ClaimValue{Known: want != "", Value: want})
}

// claimed is what a shard keeps with an id.
func (f *fixture) claimed(t testing.TB, n int, id counter.RequestID, now int64) shard.ClaimValue {
	t.Helper()
	kept, err := f.Claimed(t.Context(), n, []counter.RequestID{id}, now)
	must(t, err)
	equal(t, "ids answered for", len(kept), 1)
	return kept[0]
}

// What becomes of a like is kept with its request id and with its batch; what refuses a batch refuses its likes.
var likeClaimCases = map[string]func(t *testing.T, f *fixture){
	"like/claims": func(t *testing.T, f *fixture) {
		unknown := shard.KnownLike{}
		f.sets(t, "1?0", liking(claiming(part(0), timed(f.now, "t", "v1", "not done", "v2"), opaque("o", "v3")),
			claimed(like("al", never), 0, 0), claimed(like("bo", unknown), 0, 1), claimed(unlike("cy", never), 1, 0)))
		f.refused(t, f.claims(timed(f.now, "not done", "x", "t", "x"), opaque("o", "x")), shard.WriteReply{
			Known: []shard.KnownClaim{{Field: 1, Value: "v11"}, {Group: 1, Value: "v30"}},
		})
		f.hasClaim(t, "o", "v30")
		f.hasClaim(t, "not done", "")
		// The id of a like that was not done is free.
		f.sets(t, "1", liking(claiming(part(0), timed(f.now, "not done", "v2")), claimed(like("bo", never), 0, 0)))
		f.refused(t, f.claims(timed(f.now, "not done", "x")), known("v21"))
	},

	// Claims of likes and of entries are kept in one bucket, and need not be in the order of the likes.
	"like/claims of a mixed batch": func(t *testing.T, f *fixture) {
		f.sets(t, "100?", liking(
			claiming(part(0, entry("b", 1)), once(epochMS, 1000, false, "who", "w"), opaque("a", "va", "b", "vb", "c", "vc", "d", "vd")),
			claimed(like("al", never), 1, 3), like("al", never), claimed(like("al", never), 1, 0), claimed(like("bo", shard.KnownLike{}), 1, 2)))
		for id, want := range map[string]string{"a": "va0", "b": "vb", "c": "", "d": "vd1"} {
			f.hasClaim(t, id, want)
		}
		f.refused(t, f.claims(once(epochMS, 1000, false, "who", "x")), known("w"))
	},

	"like/claims that overflow": func(t *testing.T, f *fixture) {
		f.load(t, 0, 0, shard.Base{Key: "a", Total: 1<<63 - 1})
		f.sets(t, "o", liking(claiming(part(0), opaque("id", "v")), claimed(like("al", never), 0, 0)))
		f.hasClaim(t, "id", "")
	},

	"like/claims with a time": func(t *testing.T, f *fixture) {
		made := f.now - f.now%60_000 + 59_999
		f.set(t, made)
		id := counter.ParseRequestID(storetest.NewID(time.UnixMilli(made)))
		f.sets(t, "1", liking(claiming(part(1), timed(made, id.Bytes(), "v")), claimed(like("al", never), 0, 0)))
		f.set(t, made+dedupeMS)
		kept, err := f.Claimed(t.Context(), 1, []counter.RequestID{
			counter.ParseRequestID(storetest.NewID(time.UnixMilli(made))), id, counter.ParseRequestID("opaque"),
			counter.ParseRequestID(storetest.NewID(time.UnixMilli(made + 1))), id,
		}, f.now)
		must(t, err)
		was := shard.ClaimValue{Known: true, Value: "v1"}
		equal(t, "claims", kept, []shard.ClaimValue{{}, was, {}, {}, was})
	},

	"like/repeated batch": func(t *testing.T, f *fixture) {
		b := f.batch(
			liking(part(1, entry("a", 1)), like("al", never), unlike("al", never), like("bo", shard.KnownLike{})),
			liking(part(0), unlike("cy", never), like("al", never)))
		for range 3 {
			f.answers(t, "11?01", b)
			f.advance(t, windowMS)
		}
		f.reads(t, 1, "a", shard.KeyValue{Value: 1})
		f.counts(t, 0, 1)
		// A batch of which nothing is done has a claim of its own as well.
		b = f.batch(liking(part(2), like("al", shard.KnownLike{})))
		f.answers(t, "?", b)
		f.sets(t, "1", liking(part(2), like("al", never)))
		f.answers(t, "?", b)
		f.counts(t, 2, 1)
	},

	"like/refused with the batch": func(t *testing.T, f *fixture) {
		f.applied(t, f.batch(claiming(part(1, entry("b", 1)), opaque("id", "v"))))
		parts := []shard.ShardWrite{
			liking(part(0, entry("b", 1)), like("al", never)),
			liking(claiming(part(1), opaque("id", "v")), claimed(like("al", never), 0, 0)),
		}
		f.refused(t, f.batch(parts...), shard.WriteReply{Known: []shard.KnownClaim{{Shard: 1, Value: "v"}}})
		f.counts(t, 0, 0)
		f.counts(t, 1, 0)
		f.knowsNothing(t)
		late := f.batch(parts[0])
		late.Made -= 10_001
		f.late(t, late)
		f.counts(t, 0, 0)
	},

	"like/markers": func(t *testing.T, f *fixture) {
		f.spread(t, 0, []string{"a"}, epochMS)
		parts := func(first, second, third shard.Marker) *shard.WriteBatch {
			p := liking(part(0, entry("x", 1), entry("a", 1)), marked(like("al", never), second), marked(like("bo", never), third))
			p.Markers = []shard.Marker{0, first}
			return f.batch(part(1, entry("a", 1)), p)
		}
		moved := func(positions ...int) shard.WriteReply {
			var reply shard.WriteReply
			for _, at := range positions {
				ref := shard.EntryRef{Shard: 1, Entry: at}
				reply.Moved = append(reply.Moved, shard.MovedEntry{EntryRef: ref, Marker: epochMS})
			}
			return reply
		}
		f.refused(t, parts(epochMS, 0, 0), moved(2, 3))
		f.refused(t, parts(0, epochMS, epochMS-1), moved(1, 3))
		f.refused(t, parts(epochMS, 0, epochMS), moved(2))
		f.reads(t, 0, "a", shard.KeyValue{Marker: epochMS})
		f.answers(t, "11", parts(epochMS, epochMS, epochMS))
		f.reads(t, 0, "a", shard.KeyValue{Value: 3, Likes: 2, Marker: epochMS})
		f.looksUp(t, 0, "al", shard.PairValue{
			Known: true, PendingLike: newLike(epochMicros), Marker: epochMS,
		})
		// One that the sender knows and the shard does not, and a shard that has none.
		f.refused(t, f.batch(liking(part(2), like("al", never), marked(like("bo", never), 7))),
			shard.WriteReply{Moved: []shard.MovedEntry{{EntryRef: shard.EntryRef{Entry: 1}}}})
		f.sets(t, "1", liking(part(2), like("al", never)))
	},
}
