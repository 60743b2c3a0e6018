package ledgertest

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// windowModel is what should come of windows, for totals that do not overflow.
type windowModel struct {
	watermarks    []int64
	totals, likes map[string]int64 // by key and shard
	history       map[string]int64 // by key and hour
	pairs         map[counter.Pair]shard.PendingLike
}

// set does what one entry of a window does, and returns what it adds.
func (m *windowModel) set(pair counter.Pair, to shard.PendingLike) int64 {
	row, there := m.pairs[pair]
	repeat := to.Since < to.Micros
	switch {
	case !there && repeat && !to.Liked,
		there && to.Micros <= row.Micros,
		there && repeat && to.Liked == row.Liked:
		return 0
	}
	m.pairs[pair] = to
	switch {
	case to.Liked == row.Liked:
		return 0
	case to.Liked:
		return 1
	}
	return -1
}

// apply returns the keys that get something else than the window's deltas, and by how much in all.
func (m *windowModel) apply(w flush.Window) (adjusted []string, corrected int) {
	m.watermarks[w.Shard] = w.ID
	hour := w.ID / time.Hour.Milliseconds()
	trueDeltas := make(map[string]int64)
	for pair, to := range w.Likes {
		trueDeltas[pair.Key] += m.set(pair, to)
	}
	for key, delta := range w.Deltas {
		m.totals[fmt.Sprint(key, " ", w.Shard)] += delta
		m.history[fmt.Sprint(key, " ", hour)] += delta
	}
	for _, key := range modelKeys(w) {
		name, off := fmt.Sprint(key, " ", w.Shard), trueDeltas[key]-w.LikeDeltas[key]
		m.totals[name] += off
		m.history[fmt.Sprint(key, " ", hour)] += off
		m.likes[name] += trueDeltas[key]
		if off != 0 {
			adjusted = append(adjusted, key)
			corrected += int(max(off, -off))
		}
	}
	return adjusted, corrected
}

// modelKeys are the keys of a window's likes.
func modelKeys(w flush.Window) []string {
	keys := slices.Collect(maps.Keys(w.LikeDeltas))
	for pair := range w.Likes {
		keys = append(keys, pair.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// drawWindow draws a window after, at or before the watermark.
func (m *windowModel) drawWindow(t *rapid.T, keys []string) flush.Window {
	n := rapid.IntRange(0, Shards-1).Draw(t, "shard")
	var likes []setLike
	for _, key := range keys {
		for _, actor := range []string{"ann", "bob"} {
			if rapid.Bool().Draw(t, "set") {
				at := rapid.Int64Range(10, 30).Draw(t, "at")
				since := at - max(0, rapid.Int64Range(-3, 2).Draw(t, "since"))
				likes = append(likes, setLike{key, actor, rapid.Bool().Draw(t, "liked"), at, since})
			}
		}
	}
	w := sets(n, max(1, m.watermarks[n]+rapid.Int64Range(-2, 4).Draw(t, "id")*1_000_000), likes...)
	for key, delta := range rapid.MapOf(rapid.SampledFrom(keys), rapid.Int64Range(-50, 50)).Draw(t, "deltas") {
		w.Deltas[key] += delta
	}
	if rapid.IntRange(0, 3).Draw(t, "net") == 0 { // several changes of a pair are one entry
		w.LikeDeltas[keys[0]]++
		w.Deltas[keys[0]]++
	}
	return w
}

// randomWindows applies windows in random order and with repeats, next to a model of what should come of it.
func randomWindows(t *testing.T, l WindowInstance) {
	watermarks := make([]int64, Shards) // over all checks, since they share the ledger
	rapid.Check(t, func(t *rapid.T) {
		keys := []string{Key(), Key(), Key()}
		m := &windowModel{
			watermarks: watermarks, totals: make(map[string]int64), likes: make(map[string]int64),
			history: make(map[string]int64), pairs: make(map[counter.Pair]shard.PendingLike),
		}
		for range rapid.IntRange(1, 10).Draw(t, "windows") {
			w := m.drawWindow(t, keys)
			before := watermarks[w.Shard]
			got, err := l.Apply(t.Context(), w)
			if err != nil {
				t.Fatalf("Apply: %v", err)
			}
			if want := w.ID > before; got.OK != want || got.Previous != before {
				t.Fatalf("window %d on %d: %+v", w.ID, before, got)
			}
			if !got.OK {
				continue
			}
			adjusted, corrected := m.apply(w)
			if !slices.Equal(slices.Sorted(maps.Keys(got.Adjusted)), adjusted) || got.CorrectedLikes != corrected || got.Clipped != 0 {
				t.Errorf("%+v, want adjusted %v, corrected %d", got, adjusted, corrected)
			}
		}
		m.compare(t, l, keys)
	})
}

// compare compares the ledger with the model.
func (m *windowModel) compare(t *rapid.T, l WindowInstance, keys []string) {
	bases, err := l.Bases(t.Context(), keys)
	if err != nil {
		t.Fatalf("Bases: %v", err)
	}
	for _, row := range bases.Rows {
		name := fmt.Sprint(row.Key, " ", row.Shard)
		if row.Total != m.totals[name] || row.Likes != m.likes[name] {
			t.Errorf("%s is %d, %d of it likes, want %d and %d", name, row.Total, row.Likes, m.totals[name], m.likes[name])
		}
		delete(m.totals, name)
		delete(m.likes, name)
	}
	for _, left := range []map[string]int64{m.totals, m.likes} {
		for name, n := range left {
			if n != 0 {
				t.Errorf("not in the ledger: %s with %d", name, n)
			}
		}
	}
	m.compareHistory(t, l, keys)
	var pairs []counter.Pair
	for _, key := range keys {
		pairs = append(pairs, counter.Pair{Key: key, Actor: "ann"}, counter.Pair{Key: key, Actor: "bob"})
	}
	likes, err := l.Likes(t.Context(), pairs)
	if err != nil || !slices.Equal(likes.Watermarks, m.watermarks) {
		t.Fatalf("watermarks %v, %v, want %v", likes.Watermarks, err, m.watermarks)
	}
	for i, pair := range pairs {
		want, there := m.pairs[pair]
		if got := likes.States[i]; got.Liked != want.Liked || there && !got.At.Equal(time.UnixMicro(want.Micros)) || !there && !got.At.IsZero() {
			t.Errorf("%v is %+v, want %+v", pair, got, want)
		}
	}
	for _, key := range keys {
		var got, want []string
		watermarks, err := l.Likers(t.Context(), key, 3, func(actor []byte) { got = append(got, string(actor)) })
		if err != nil || !slices.Equal(watermarks, m.watermarks) {
			t.Fatalf("watermarks %v, %v, want %v", watermarks, err, m.watermarks)
		}
		for pair := range m.pairs {
			if pair.Key == key {
				want = append(want, pair.Actor)
			}
		}
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("likers of %s are %v, want %v", key, got, want)
		}
	}
}

// compareHistory compares the hours of keys with the model's.
func (m *windowModel) compareHistory(t *rapid.T, l WindowInstance, keys []string) {
	got := make(map[string]int64)
	for _, key := range keys {
		readHours(t, l, key, got)
	}
	maps.DeleteFunc(m.history, func(_ string, delta int64) bool { return delta == 0 })
	if !maps.Equal(got, m.history) {
		t.Errorf("hours %v, want %v", got, m.history)
	}
}

// readHours adds what the hours of a key have changed.
func readHours(t *rapid.T, l WindowInstance, key string, hours map[string]int64) {
	rows, err := l.DB.QueryContext(t.Context(), `SELECT bucket, CAST(delta AS bigint) FROM counter_history WHERE key = $1 AND delta <> 0`, key)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var bucket time.Time
		var delta int64
		if err := rows.Scan(&bucket, &delta); err != nil {
			t.Fatal(err)
		}
		hours[fmt.Sprint(key, " ", bucket.UnixMilli()/time.Hour.Milliseconds())] = delta
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
