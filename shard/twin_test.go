package shard_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// TestTwin applies random sequences of operations to the scripts on Redis and to their twin alike: all answers
// must be the same, and so must be what they hold after each operation. The shards take part in what the
// protocol does to them, and now and then in what it never would.
func TestTwin(t *testing.T) {
	t.Parallel()
	redis, memory := openRedis(t), openTwin(t)
	rapid.Check(t, func(rt *rapid.T) { compareTwins(t, rt, redis, memory) })
}

// FuzzTwin is TestTwin with the input for chance.
func FuzzTwin(f *testing.F) {
	shard.AddChance(f, 8, 1000)
	redis, memory := openRedis(f), openTwin(f)
	f.Fuzz(shard.Chance(func(t *testing.T, rt *rapid.T) { compareTwins(t, rt, redis, memory) }))
}

func compareTwins(t *testing.T, rt *rapid.T, redis, memory *fixture) {
	m := &twins{redis: redis, memory: memory, t: t, rt: rt, watermarks: make([]int64, scriptConfig.Shards)}
	for _, f := range []*fixture{redis, memory} {
		f.flushAll(t)
		clear(f.tokens)
	}
	m.setClock(epochMS * 1000)
	rt.Repeat(map[string]func(*rapid.T){
		"":         m.compare,
		"advance":  m.advance,
		"write":    m.write,
		"write2":   m.write, // twice as often
		"read":     m.read,
		"load":     m.load,
		"homes":    m.homes,
		"spread":   m.spread,
		"claimed":  m.claimed,
		"pending":  m.pending,
		"seal":     m.seal,
		"restore":  m.restoreMarkers,
		"drain":    m.drain,
		"begin":    m.begin,
		"move":     m.move,
		"end":      m.end,
		"discard":  m.discard,
		"sweep":    m.sweep,
		"evict":    m.evict,
		"rollback": m.rollback,
	})
}

// twins are two fixtures that are treated alike.
type twins struct {
	redis, memory *fixture
	t             *testing.T
	rt            *rapid.T
	micros        int64
	batches       int
	gens          int
	watermarks    []int64
	windows       [2][]int64 // ids that were seen of each shard
	saved         []func(testing.TB)
}

// Only some of the shards, keys and ids there could be: operations shall meet.
var (
	anyKey   = rapid.SampledFrom([]string{"a", "b", "c", "d"})
	anyShard = rapid.IntRange(0, 1)
	anyField = rapid.SampledFrom([]string{"f", "g", "h"})
	anyValue = rapid.SampledFrom([]string{"v", "w"})
	actors   = []string{"al", "bo"}

	anyWidth  = rapid.SampledFrom([]int{0, 2, 3, shard.MaxShards - 1})
	anyMarker = rapid.Custom(func(t *rapid.T) shard.Marker {
		at := rapid.SampledFrom([]int64{0, 1, epochMS - 1, epochMS}).Draw(t, "at")
		if at < epochMS-1 {
			return shard.Marker(at)
		}
		return shard.NewMarker(at, anyWidth.Draw(t, "width"))
	})
	anyPair = rapid.Custom(func(t *rapid.T) counter.Pair {
		return counter.Pair{Key: anyKey.Draw(t, "key"), Actor: rapid.SampledFrom(actors).Draw(t, "actor")}
	})
	anyDelta = rapid.OneOf(
		rapid.Int64Range(-3, 3),
		rapid.SampledFrom([]int64{
			math.MaxInt64, math.MinInt64, math.MaxInt64 - 1, math.MinInt64 + 1, 1 << 62, -1 << 62,
			1<<53 - 1, 1 << 53, 1<<53 + 1, -1 << 53, 1<<52 - 1, 1 << 52, -1<<52 + 1, 1_000_000_000, 999_999_999,
		}),
	)
)

func (m *twins) now() int64 { return m.micros / 1000 }

func (m *twins) setClock(micros int64) {
	m.micros = micros
	m.redis.now, m.memory.now = micros/1000, micros/1000
	m.redis.setClock(m.t, micros)
	m.memory.setClock(m.t, micros)
}

// both runs an operation on both and fails unless the answers are the same.
func both[T any](m *twins, rt *rapid.T, operation func(f *fixture) (T, error)) T {
	want, err := operation(m.memory)
	must(m.t, err)
	got, err := operation(m.redis)
	must(m.t, err)
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		rt.Fatalf("redis answers\n%s\nits twin\n%s", g, w)
	}
	return got
}

func do(m *twins, rt *rapid.T, operation func(f *fixture) error) {
	both(m, rt, func(f *fixture) (struct{}, error) { return struct{}{}, operation(f) })
}

func (m *twins) advance(rt *rapid.T) {
	step := rapid.SampledFrom([]int64{
		1, 999, 1000, 1_000_000, windowMS*1000 - 1, windowMS * 1000, -1000, -(windowMS - 1) * 1000,
		60_000_000, dedupeMS * 1000, opaqueMS * 1000, 700_000_000, hourMS * 1000,
	}).Draw(rt, "step")
	m.setClock(m.micros + step)
}

func (m *twins) write(rt *rapid.T) {
	now := m.now()
	b := &shard.WriteBatch{Made: now + rapid.SampledFrom([]int64{0, 0, 0, -1, 1, -10_000, -10_001, 10_000, 10_001}).Draw(rt, "made")}
	b.ID = fmt.Sprint("again", rapid.IntRange(0, 2).Draw(rt, "id"))
	if rapid.IntRange(0, 5).Draw(rt, "fresh") > 0 {
		m.batches++
		b.ID = fmt.Sprint("fresh", m.batches)
	}
	for _, n := range rapid.SliceOfNDistinct(anyShard, 1, 2, rapid.ID).Draw(rt, "shards") {
		p := m.part(rt, n)
		if len(p.Likes) > 0 && rapid.Bool().Draw(rt, "likes alone") {
			p.Entries, p.Markers = nil, nil
		}
		b.Shards = append(b.Shards, p)
	}
	both(m, rt, func(f *fixture) (shard.WriteReply, error) {
		reply, err := f.Write(context.Background(), b)
		// The order of reasons means nothing.
		slices.SortStableFunc(reply.Moved, func(a, b shard.MovedEntry) int { return compareRefs(a.EntryRef, b.EntryRef) })
		slices.SortFunc(reply.Overflowing, compareRefs)
		return reply, err
	})
}

// part draws the part of a batch for one shard. Its sender mostly knows the markers.
func (m *twins) part(rt *rapid.T, n int) shard.ShardWrite {
	p := shard.ShardWrite{Shard: n}
	keys := rapid.SliceOfNDistinct(anyKey, 1, 4, rapid.ID).Draw(rt, "keys")
	replies, err := m.memory.Read(context.Background(), []shard.KeyGroup{{Shard: n, Keys: keys}})
	must(m.t, err)
	for i, key := range keys {
		delta := anyDelta.Filter(func(d int64) bool { return d != 0 }).Draw(rt, "delta")
		p.Entries = append(p.Entries, entry(key, delta))
		marker := replies[0].Values[i].Marker
		if rapid.IntRange(0, 9).Draw(rt, "stale") == 0 {
			marker = anyMarker.Draw(rt, "marker")
		}
		p.Markers = append(p.Markers, marker)
	}
	if p.Reset = rapid.IntRange(0, 9).Draw(rt, "reset") == 0; p.Reset {
		for i := range p.Entries {
			p.Entries[i].Delta = 0
		}
	}
	now := m.now()
	for _, kind := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 0, 2, rapid.ID).Draw(rt, "claims") {
		g := shard.ClaimGroup{Kind: shard.ClaimKind(kind)}
		switch kind {
		case 0:
			offset := rapid.SampledFrom([]int64{0, -1000, -60_000, -dedupeMS, -dedupeMS - 1, earlyMS, earlyMS + 1})
			g.Oldest, g.Newest = now+offset.Draw(rt, "oldest"), now+offset.Draw(rt, "newest")
			g.Bucket = g.Oldest - g.Oldest%60_000
		case 1:
		case 2:
			g.Period = rapid.SampledFrom([]int64{1000, 60_000, 3_600_000}).Draw(rt, "period")
			at := now - g.Period*rapid.Int64Range(0, 1).Draw(rt, "periods ago")
			g.Bucket, g.Current = at-at%g.Period, rapid.Bool().Draw(rt, "current")
		default:
			continue
		}
		for _, field := range rapid.SliceOfNDistinct(anyField, 1, 3, rapid.ID).Draw(rt, "fields") {
			g.Fields, g.Values = append(g.Fields, field), append(g.Values, anyValue.Draw(rt, "value"))
		}
		p.Claims = append(p.Claims, g)
	}
	m.addLikes(rt, &p)
	return p
}

// addLikes draws likes, mostly of states that the sender knows. At most one of them has a claim.
func (m *twins) addLikes(rt *rapid.T, p *shard.ShardWrite) {
	for _, pair := range rapid.SliceOfN(anyPair, 0, 4).Draw(rt, "likes") {
		like := shard.LikeWrite{Pair: pair, Liked: rapid.Bool().Draw(rt, "liked"), Group: -1}
		values, err := m.memory.Likes(context.Background(), []shard.PairGroup{{Shard: p.Shard, Pairs: []counter.Pair{pair}}})
		must(m.t, err)
		like.Marker = values[0][0].Marker
		if rapid.IntRange(0, 29).Draw(rt, "stale") == 0 {
			like.Marker = anyMarker.Draw(rt, "marker")
		}
		like.Known.Source = shard.LikeSource(rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(rt, "source"))
		if like.Known.Source == shard.LikeLoaded {
			like.Known.Watermark = m.window(rt, p.Shard)
			if set := m.micros + rapid.SampledFrom([]int64{-1_000_000, -1, 0, 1, 1_000_000}).Draw(rt, "set"); rapid.Bool().Draw(rt, "there") {
				ago := rapid.SampledFrom([]int64{0, 0, 1, set}).Draw(rt, "ago")
				like.Known.PendingLike = shard.PendingLike{Liked: rapid.Bool().Draw(rt, "was"), Micros: set, Since: set - ago}
			}
		}
		if rapid.IntRange(0, 3).Draw(rt, "dated") == 0 {
			like.At = m.micros + rapid.SampledFrom([]int64{-1_000_001, -1_000_000, -1, 0, 1, 1_000_000}).Draw(rt, "at")
		}
		p.Likes = append(p.Likes, like)
	}
	if len(p.Likes) > 0 && len(p.Claims) > 0 {
		like := &p.Likes[rapid.IntRange(0, len(p.Likes)-1).Draw(rt, "claiming")]
		like.Group = rapid.IntRange(0, len(p.Claims)-1).Draw(rt, "group")
		like.Field = rapid.IntRange(0, len(p.Claims[like.Group].Fields)-1).Draw(rt, "field")
	}
}

func compareRefs(a, b shard.EntryRef) int {
	return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Entry, b.Entry))
}

func (m *twins) homes(rt *rapid.T) {
	groups := []shard.KeyGroup{{Shard: anyShard.Draw(rt, "shard"), Keys: rapid.SliceOfN(anyKey, 1, 2).Draw(rt, "keys")}}
	both(m, rt, func(f *fixture) ([]shard.HomeReply, error) { return f.Homes(context.Background(), groups) })
}

func (m *twins) read(rt *rapid.T) {
	groups := []shard.KeyGroup{{
		Shard: anyShard.Draw(rt, "shard"), Keys: rapid.SliceOfN(anyKey, 1, 5).Draw(rt, "keys"), Away: rapid.Bool().Draw(rt, "away"),
	}}
	both(m, rt, func(f *fixture) ([]shard.ReadReply, error) { return f.Read(context.Background(), groups) })
}

func (m *twins) load(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	var bases []shard.Base
	for _, key := range rapid.SliceOfNDistinct(anyKey, 1, 4, rapid.ID).Draw(rt, "keys") {
		marker := shard.Marker(0)
		if rapid.IntRange(0, 2).Draw(rt, "spread") == 0 {
			marker = anyMarker.Draw(rt, "marker")
		}
		bases = append(bases, shard.Base{Key: key, Total: anyDelta.Draw(rt, "total"), Marker: marker, TTL: 1000 * hour})
	}
	watermark := m.window(rt, n)
	both(m, rt, func(f *fixture) (bool, error) { return f.Load(context.Background(), n, watermark, bases) })
}

func (m *twins) spread(rt *rapid.T) {
	n, keys := anyShard.Draw(rt, "shard"), rapid.SliceOfN(anyKey, 1, 2).Draw(rt, "keys")
	width := anyWidth.Draw(rt, "width")
	both(m, rt, func(f *fixture) ([]shard.Marker, error) { return f.Spread(context.Background(), n, keys, width) })
}

func (m *twins) claimed(rt *rapid.T) {
	n, field := anyShard.Draw(rt, "shard"), anyField.Draw(rt, "field")
	both(m, rt, func(f *fixture) ([]shard.ClaimValue, error) {
		return f.Claimed(context.Background(), n, []counter.RequestID{counter.ParseRequestID(field)}, m.now())
	})
}

func (m *twins) pending(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	both(m, rt, func(f *fixture) (shard.PendingWindows, error) { return f.Pending(context.Background(), n) })
}

// window draws a window of the shard: mostly the ledger's watermark or a window that was seen.
func (m *twins) window(rt *rapid.T, n int) int64 {
	known := append(slices.Clone(m.windows[n]), m.watermarks[n], m.watermarks[n])
	id := rapid.SampledFrom(known).Draw(rt, "window")
	if rapid.IntRange(0, 9).Draw(rt, "off") == 0 {
		id = max(0, id+rapid.SampledFrom([]int64{-1, 1}).Draw(rt, "by"))
	}
	return id
}

func (m *twins) gen() string {
	m.gens++
	return fmt.Sprint("g", m.gens)
}

func (m *twins) seal(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	watermark := m.watermarks[n]
	if rapid.IntRange(0, 9).Draw(rt, "strange") == 0 {
		watermark = m.window(rt, n)
	}
	m.sealAt(rt, n, watermark)
}

func (m *twins) sealAt(rt *rapid.T, n int, watermark int64) shard.SealReply {
	gen, applied := m.gen(), m.sealed(rt, n, watermark)
	reply := both(m, rt, func(f *fixture) (shard.SealReply, error) {
		return f.Seal(context.Background(), n, applied, gen)
	})
	for _, w := range reply.Sealed {
		m.windows[n] = append(m.windows[n], w.ID)
		m.memory.remember(n, w)
	}
	m.windows[n] = slices.Compact(slices.Sorted(slices.Values(m.windows[n])))
	return reply
}

// sealed is a window with the token by which it was last sealed, or now and then another.
func (m *twins) sealed(rt *rapid.T, n int, id int64) shard.SealedWindow {
	if rapid.IntRange(0, 9).Draw(rt, "strange token") == 0 {
		return shard.SealedWindow{ID: id, Token: "strange"}
	}
	return m.memory.sealed(n, id)
}

// drain takes the oldest sealed window as far as chance has it: from the ledger, whose watermark is set, to
// its end.
func (m *twins) drain(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	sealed := m.sealAt(rt, n, m.watermarks[n]).Sealed
	if len(sealed) == 0 {
		return
	}
	id, previous, gen := sealed[0].ID, m.watermarks[n], m.gen()
	if id <= previous {
		do(m, rt, func(f *fixture) error { return f.Discard(context.Background(), n, id, gen) })
		return
	}
	part := m.memory.scan(m.t, n, id)
	if rapid.IntRange(0, 4).Draw(rt, "rollback before begin") == 0 {
		m.rollback(rt)
	}
	m.watermarks[n] = id
	steps := rapid.IntRange(0, 3).Draw(rt, "steps")
	if steps > 0 {
		both(m, rt, func(f *fixture) (bool, error) { return f.Begin(context.Background(), n, sealed[0], previous, gen) })
	}
	if steps > 1 {
		moves := m.moves(rt, part)
		do(m, rt, func(f *fixture) error { return f.Move(context.Background(), n, id, moves) })
	}
	if steps > 2 {
		do(m, rt, func(f *fixture) error { return f.End(context.Background(), n, id, len(part.Likes)) })
	}
}

func (m *twins) begin(rt *rapid.T) {
	n, gen := anyShard.Draw(rt, "shard"), m.gen()
	id, previous := m.window(rt, n), m.window(rt, n)
	window := m.sealed(rt, n, id)
	both(m, rt, func(f *fixture) (bool, error) { return f.Begin(context.Background(), n, window, previous, gen) })
}

func (m *twins) move(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	id := m.window(rt, n)
	var moves shard.Moves
	for _, key := range rapid.SliceOfNDistinct(anyKey, 0, 3, rapid.ID).Draw(rt, "keys") {
		moves.Deltas = append(moves.Deltas, shard.MovedDelta{
			Key: key, Delta: anyDelta.Draw(rt, "delta"), Likes: anyDelta.Draw(rt, "likes"), Reload: rapid.Bool().Draw(rt, "reload"),
		})
	}
	moves.Markers = rapid.SliceOfN(anyKey, 0, 2).Draw(rt, "markers")
	do(m, rt, func(f *fixture) error { return f.Move(context.Background(), n, id, moves) })
}

// moves are those of all that a window holds, as a worker makes them.
func (m *twins) moves(rt *rapid.T, part shard.WindowPart) shard.Moves {
	moves := shard.Moves{Markers: slices.Sorted(maps.Keys(part.Markers))}
	for _, key := range slices.Sorted(maps.Keys(part.Deltas)) {
		reload := rapid.IntRange(0, 3).Draw(rt, "reload") == 0
		moves.Deltas = append(moves.Deltas, shard.MovedDelta{
			Key: key, Delta: part.Deltas[key], Likes: part.LikeDeltas[key], Reload: reload,
		})
	}
	return moves
}

func (m *twins) end(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	id, likes := m.window(rt, n), rapid.IntRange(0, 2).Draw(rt, "likes")
	do(m, rt, func(f *fixture) error { return f.End(context.Background(), n, id, likes) })
}

func (m *twins) discard(rt *rapid.T) {
	n, gen := anyShard.Draw(rt, "shard"), m.gen()
	id := m.window(rt, n)
	do(m, rt, func(f *fixture) error { return f.Discard(context.Background(), n, id, gen) })
}

func (m *twins) restoreMarkers(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	markers := rapid.MapOfN(anyKey, anyMarker.Filter(func(m shard.Marker) bool { return m != 0 }), 0, 2).Draw(rt, "markers")
	do(m, rt, func(f *fixture) error { return f.RestoreMarkers(context.Background(), n, markers) })
}

func (m *twins) sweep(rt *rapid.T) {
	n := anyShard.Draw(rt, "shard")
	do(m, rt, func(f *fixture) error { return f.Sweep(context.Background(), n) })
}

func (m *twins) evict(rt *rapid.T) {
	if rapid.Bool().Draw(rt, "likes") {
		hour := m.now()/hourMS - epochMS/hourMS - rapid.Int64Range(0, 1).Draw(rt, "hours ago")
		m.redis.evictLikes(m.t, hour)
		m.memory.evictLikes(m.t, hour)
		return
	}
	key := anyKey.Draw(rt, "key")
	m.redis.evict(m.t, key)
	m.memory.evict(m.t, key)
}

// rollback saves a state, goes back to a saved one, or loses everything.
func (m *twins) rollback(rt *rapid.T) {
	switch n := rapid.IntRange(-1, 3).Draw(rt, "to"); {
	case n == 0:
		m.redis.flushAll(m.t)
		m.memory.flushAll(m.t)
	case n > 0 && n <= len(m.saved):
		m.saved[len(m.saved)-n](m.t)
	default:
		redis, memory := m.redis.snapshot(m.t), m.memory.snapshot(m.t)
		m.saved = append(m.saved, func(t testing.TB) {
			redis(t)
			memory(t)
		})
	}
	m.setClock(m.micros)
}

// compare compares all that the scripts show of the shards.
func (m *twins) compare(rt *rapid.T) {
	groups := []shard.KeyGroup{{Shard: 0}, {Shard: 1}}
	pairs := []shard.PairGroup{{Shard: 0}, {Shard: 1}}
	for i := range groups {
		groups[i].Keys = []string{"a", "b", "c", "d"}
		for _, key := range groups[i].Keys {
			for _, actor := range actors {
				pairs[i].Pairs = append(pairs[i].Pairs, counter.Pair{Key: key, Actor: actor})
			}
		}
	}
	both(m, rt, func(f *fixture) ([]shard.ReadReply, error) { return f.Read(context.Background(), groups) })
	both(m, rt, func(f *fixture) ([][]shard.PairValue, error) { return f.Likes(context.Background(), pairs) })
	for n := range groups {
		got, want := m.redis.windows(m.t, n), m.memory.windows(m.t, n)
		if !slices.Equal(got, want) {
			rt.Fatalf("redis has the windows %d, its twin %d", got, want)
		}
		for _, id := range want {
			both(m, rt, func(f *fixture) (shard.WindowPart, error) { return f.scan(m.t, n, id), nil })
		}
		m.windows[n] = slices.Compact(slices.Sorted(slices.Values(append(m.windows[n], want...))))
	}
}
