package shard_test

import (
	"fmt"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

func claiming(p shard.ShardWrite, groups ...shard.ClaimGroup) shard.ShardWrite {
	p.Claims = groups
	return p
}

// withFields adds fields and values, given in turn.
func withFields(g shard.ClaimGroup, pairs []string) shard.ClaimGroup {
	for i := 0; i < len(pairs); i += 2 {
		g.Fields, g.Values = append(g.Fields, pairs[i]), append(g.Values, pairs[i+1])
	}
	return g
}

// timed is a group of ids that were all made at one time.
func timed(made int64, pairs ...string) shard.ClaimGroup {
	return withFields(shard.ClaimGroup{Kind: shard.ClaimTimed, Bucket: made - made%60_000, Oldest: made, Newest: made}, pairs)
}

func opaque(pairs ...string) shard.ClaimGroup {
	return withFields(shard.ClaimGroup{Kind: shard.ClaimOpaque}, pairs)
}

func once(bucket, period int64, current bool, pairs ...string) shard.ClaimGroup {
	return withFields(shard.ClaimGroup{Kind: shard.ClaimOnce, Bucket: bucket, Period: period, Current: current}, pairs)
}

// claims is a batch of one change to shard 0 under claims.
func (f *fixture) claims(groups ...shard.ClaimGroup) *shard.WriteBatch {
	return f.batch(claiming(part(0, entry("a", 1)), groups...))
}

func known(values ...string) shard.WriteReply {
	var reply shard.WriteReply
	for i, v := range values {
		reply.Known = append(reply.Known, shard.KnownClaim{Field: i, Value: v})
	}
	return reply
}

func aged(lost int64) shard.WriteReply {
	return shard.WriteReply{Aged: []shard.AgedGroup{{Lost: lost}}}
}

func (f *fixture) sweep(t testing.TB, n int) {
	t.Helper()
	must(t, f.Sweep(t.Context(), n))
}

var claimCases = map[string]func(t *testing.T, f *fixture){
	"claims/timed": func(t *testing.T, f *fixture) {
		made := f.now - 1000
		f.applied(t, f.claims(timed(made, "one", "v1", "two", "v2")))
		f.refused(t, f.claims(timed(made, "one", "other", "two", "v2")), known("v1", "v2"))
		// For as long as the id is accepted, and not in another bucket or on another shard.
		f.set(t, made+dedupeMS)
		f.sweep(t, 0)
		f.refused(t, f.claims(timed(made, "one", "v1")), known("v1"))
		f.applied(t, f.claims(timed(made-made%60_000+60_000, "one", "v1")))
		f.applied(t, f.batch(claiming(part(1, entry("a", 1)), timed(made, "one", "v1"))))
		f.pending(t, 0, "a", 2)
	},

	"claims/timed range": func(t *testing.T, f *fixture) {
		for i, c := range []struct {
			oldest, newest int64
			want           shard.WriteReply
		}{
			{-dedupeMS, 0, shard.WriteReply{}},
			{-dedupeMS - 1, 0, aged(0)},
			{0, earlyMS, shard.WriteReply{}},
			{0, earlyMS + 1, aged(0)},
		} {
			g := timed(f.now, fmt.Sprint(i), "v")
			g.Oldest, g.Newest = f.now+c.oldest, f.now+c.newest
			if len(c.want.Aged) == 0 {
				f.applied(t, f.claims(g))
			} else {
				f.refused(t, f.claims(g), c.want)
			}
		}
	},

	"claims/timed after a rollback": func(t *testing.T, f *fixture) {
		f.applied(t, f.claims(timed(epochMS+1, "known", "v")))
		f.seal(t, 0, epochMS+2, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.advance(t, 1000)
		f.refused(t, f.claims(timed(epochMS, "new", "v")), aged(epochMS))
		f.applied(t, f.claims(timed(epochMS+1, "new", "v")))
		// What is known is still said.
		g := timed(epochMS, "x", "v", "known", "v")
		f.refused(t, f.claims(g), shard.WriteReply{
			Known: []shard.KnownClaim{{Field: 1, Value: "v"}}, Aged: []shard.AgedGroup{{Lost: epochMS}},
		})
	},

	"claims/opaque": func(t *testing.T, f *fixture) {
		f.advance(t, 1000)
		f.applied(t, f.claims(opaque("one", "v1", "two", "v2")))
		made := f.now
		for f.now < made+opaqueMS {
			f.advance(t, opaqueMS/4)
			f.sweep(t, 0)
			f.refused(t, f.claims(opaque("one", "x", "two", "v2")), known("v1", "v2"))
			equal(t, "claimed", f.claimed(t, 0, counter.ParseRequestID("two"), f.now), shard.ClaimValue{Known: true, Value: "v2"})
		}
		f.set(t, epochMS+2*opaqueMS)
		f.applied(t, f.claims(opaque("one", "x")))
		equal(t, "claimed on another shard", f.claimed(t, 1, counter.ParseRequestID("one"), f.now), shard.ClaimValue{})
	},

	"claims/opaque in two buckets": func(t *testing.T, f *fixture) {
		f.applied(t, f.claims(opaque("first", "v1")))
		f.advance(t, opaqueMS)
		f.applied(t, f.claims(opaque("second", "v2")))
		f.refused(t, f.claims(opaque("zero", "v0", "second", "v2", "first", "v1")), shard.WriteReply{
			Known: []shard.KnownClaim{{Field: 2, Value: "v1"}, {Field: 1, Value: "v2"}},
		})
	},

	// After a failover the clock may be behind by up to a window, on the other side of the edge of a bucket.
	"claims/opaque when the clock steps back": func(t *testing.T, f *fixture) {
		f.applied(t, f.claims(opaque("id", "v")))
		for _, back := range []int64{1, windowMS - 1} {
			f.advance(t, -back)
			f.refused(t, f.claims(opaque("id", "v")), known("v"))
		}
	},

	"claims/opaque after a rollback": func(t *testing.T, f *fixture) {
		f.applied(t, f.claims(opaque("known", "v")))
		f.seal(t, 0, epochMS+1, "g", sealReply{RolledBack: true, RestoreDue: true})
		f.advance(t, opaqueMS)
		f.refused(t, f.claims(opaque("new", "v")), aged(epochMS))
		f.refused(t, f.claims(opaque("known", "v")), shard.WriteReply{
			Known: []shard.KnownClaim{{Value: "v"}}, Aged: []shard.AgedGroup{{Lost: epochMS}},
		})
		f.advance(t, 1)
		f.applied(t, f.claims(opaque("new", "v")))
	},

	"claims/once": func(t *testing.T, f *fixture) {
		const period = 3_600_000
		bucket := f.now - f.now%period
		f.applied(t, f.claims(once(bucket, period, true, "a\x00alice", "id1")))
		f.refused(t, f.claims(once(bucket, period, true, "a\x00alice", "id2")), known("id1"))
		f.applied(t, f.claims(once(bucket, period, true, "a\x00bob", "id3")))
		// Another length of period is another claim.
		f.applied(t, f.claims(once(f.now-f.now%60_000, 60_000, true, "a\x00alice", "id4")))

		// The period of a request id may be over, that of the clock may not.
		f.set(t, bucket+period)
		f.sweep(t, 0)
		f.refused(t, f.claims(once(bucket, period, true, "a\x00carol", "id5")), aged(0))
		f.refused(t, f.claims(once(bucket+2*period, period, true, "a\x00carol", "id5")), aged(0))
		f.refused(t, f.claims(once(bucket, period, false, "a\x00alice", "id6")), known("id1"))
		f.applied(t, f.claims(once(bucket, period, false, "a\x00carol", "id7")))
		f.applied(t, f.claims(once(bucket+period, period, true, "a\x00alice", "id8")))
	},

	"claims/are kept for as long as they can be met": func(t *testing.T, f *fixture) {
		const period = 60_000
		f.set(t, epochMS+59_999)
		b := f.claims(timed(f.now, "id", "v"), once(epochMS, period, false, "a\x00alice", "w"), opaque("any", "u"))
		f.applied(t, b)
		met := func(what string, batch *shard.WriteBatch, want bool) {
			t.Helper()
			f.sweep(t, 0)
			got, err := f.Write(t.Context(), batch)
			must(t, err)
			equal(t, what, len(got.Known) > 0, want)
		}
		f.advance(t, dedupeMS+earlyMS)
		met("timed", f.claims(timed(b.Made, "id", "v")), true)
		met("once", f.claims(once(epochMS, period, false, "a\x00alice", "w")), true)
		f.set(t, epochMS+2*opaqueMS-1)
		met("opaque", f.claims(opaque("any", "u")), true)
		// And not for ever: what is swept is gone, though the bucket would be looked at.
		f.advance(t, 3*opaqueMS)
		met("once, later", f.claims(once(epochMS, period, false, "a\x00alice", "w")), false)
		equal(t, "opaque, later", f.claimed(t, 0, counter.ParseRequestID("any"), epochMS+opaqueMS), shard.ClaimValue{})
	},

	"claims/are forgotten to the millisecond": func(t *testing.T, f *fixture) {
		const period = 60_000
		f.applied(t, f.claims(once(epochMS, period, false, "x", "v")))
		f.set(t, epochMS+period+dedupeMS+earlyMS+60_000)
		f.sweep(t, 0)
		f.refused(t, f.claims(once(epochMS, period, false, "x", "v")), known("v"))
		f.advance(t, 1)
		f.sweep(t, 0)
		f.applied(t, f.claims(once(epochMS, period, false, "x", "v")))
	},

	"claims/batches are forgotten": func(t *testing.T, f *fixture) {
		f.set(t, epochMS+59_999)
		b := f.batch(part(0, entry("a", 1)))
		f.applied(t, b)
		f.advance(t, 10_000)
		f.sweep(t, 0)
		f.applied(t, b)
		f.pending(t, 0, "a", 1)
		f.advance(t, 180_000)
		f.sweep(t, 0)
		f.late(t, b)
	},

	"claims/sweep some at a time": func(t *testing.T, f *fixture) {
		const buckets = 150
		for i := range int64(buckets) {
			f.applied(t, f.batch(claiming(part(0, entry("a", 1)), once(epochMS+i*1000, 1000, false, "x", fmt.Sprint(i)))))
		}
		f.advance(t, opaqueMS*10)
		left := func() int {
			n := 0
			for i := range int64(buckets) {
				// The second claim has it refused in any case.
				b := f.batch(claiming(part(0, entry("a", 1)),
					once(epochMS+i*1000, 1000, false, "x", "v"), once(epochMS, 1000, true, "never", "v")))
				n += len(f.write(t, b).Known)
			}
			return n
		}
		equal(t, "before", left(), buckets)
		// The bucket of the batches is one of those that are swept.
		f.sweep(t, 0)
		equal(t, "after one sweep", left() <= buckets-99, true)
		f.sweep(t, 0)
		equal(t, "after two sweeps", left(), 0)
	},
}
