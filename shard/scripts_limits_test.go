package shard_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// names returns n names.
func names(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint(prefix, i)
	}
	return names
}

func entriesOf(keys []string, delta int64) []counter.Entry {
	entries := make([]counter.Entry, len(keys))
	for i, key := range keys {
		entries[i] = entry(key, delta)
	}
	return entries
}

// claimsOf gives each field a value of its own.
func claimsOf(g shard.ClaimGroup, fields []string) shard.ClaimGroup {
	g.Fields = fields
	for i := range fields {
		g.Values = append(g.Values, fmt.Sprint("v", i))
	}
	return g
}

// The largest of everything, far beyond what Lua unpacks at once.
var limitCases = map[string]func(t *testing.T, f *fixture){
	"large/claims": func(t *testing.T, f *fixture) {
		fields := names("id", 9_000)
		big := f.batch(claiming(part(0, entriesOf(names("k", counter.MaxEntries), 1)...),
			claimsOf(timed(f.now), fields), claimsOf(opaque(), fields)))
		f.applied(t, big)
		var want shard.WriteReply
		for g := range 2 {
			for i := range fields {
				want.Known = append(want.Known, shard.KnownClaim{Group: g, Field: i, Value: fmt.Sprint("v", i)})
			}
		}
		again := f.batch(big.Shards...)
		f.refused(t, again, want)
		// One known claim, at each edge of a chunk.
		for _, at := range []int{0, 1_999, 2_000, 8_999} {
			fields := names("new", 9_000)
			fields[at] = "id7"
			f.refused(t, f.batch(claiming(part(0, entry("k0", 1)), claimsOf(timed(f.now), fields))),
				shard.WriteReply{Known: []shard.KnownClaim{{Field: at, Value: "v7"}}})
		}
		f.pending(t, 0, "k0", 1)
		f.pending(t, 0, "k9999", 1)
	},

	"large/markers": func(t *testing.T, f *fixture) {
		keys := names("k", counter.MaxEntries)
		bases := make([]shard.Base, len(keys))
		want := shard.WriteReply{}
		for i, key := range keys {
			bases[i] = shard.Base{Key: key, Total: 5, Marker: shard.Marker(i + 2), TTL: hour}
			want.Moved = append(want.Moved, shard.MovedEntry{EntryRef: shard.EntryRef{Shard: 1, Entry: i}, Marker: shard.Marker(i + 2)})
		}
		f.load(t, 3, 0, bases...)
		b := f.batch(part(0, entry("x", 1)), part(3, entriesOf(keys, 2)...))
		f.refused(t, b, want)
		for i := range keys {
			b.Shards[1].Markers = append(b.Shards[1].Markers, shard.Marker(i+2))
		}
		f.applied(t, b)
		f.reads(t, 3, "k9999", shard.KeyValue{Value: 7, Cached: true, Marker: 10_001})
	},

	"large/window": func(t *testing.T, f *fixture) {
		keys := names("k", counter.MaxEntries)
		f.add(t, 0, entriesOf(keys, 3)...)
		f.load(t, 0, 0, shard.Base{Key: "k0", Total: 1}, shard.Base{Key: "k9999", Total: 2})
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		equal(t, "keys", len(f.scan(t, 0, epochMS).Deltas), len(keys))
		f.begin(t, 0, epochMS, 0, "g", false)
		for chunk := range slices.Chunk(entriesOf(keys, 3), 1_000) {
			f.move(t, 0, epochMS, chunk...)
		}
		f.end(t, 0, epochMS)
		f.cached(t, 0, "k0", 4)
		f.cached(t, 0, "k9999", 5)
		equal(t, "windows", len(f.windows(t, 0)), 0)
	},

	// So many windows that sums of small deltas leave int64.
	"large/windows": func(t *testing.T, f *fixture) {
		const step, windows = 1<<52 - 1, 1_024
		for range windows {
			f.add(t, 0, entry("a", step), entry("b", -step))
			f.add(t, 0, entry("a", step), entry("b", -step))
			f.advance(t, windowMS)
		}
		f.refused(t, f.batch(part(0, entry("b", -step), entry("a", step))), overflowing(0, 1))
		const left = 1<<63 - 1 - 2*windows*step
		f.add(t, 0, entry("a", left), entry("b", -left-1))
		f.refused(t, f.batch(part(0, entry("a", 1))), overflowing(0))
		f.refused(t, f.batch(part(0, entry("b", -1))), overflowing(0))
	},
}
