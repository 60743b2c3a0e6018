package ledgertest

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/shard"
)

// Shards is how many shards the ledgers under test have.
const Shards = 3

// WindowLedger is what is tested.
type WindowLedger interface {
	flush.WindowLedger
	Lists
}

// WindowInstance is a new, empty ledger with Shards shards that keeps its history by the hour and is closed by
// the test's cleanup.
type WindowInstance struct {
	WindowLedger
	// Other is a second handle on the same data.
	Other WindowLedger
	// DB reads what is public.
	DB *sql.DB
}

// ExerciseWindows checks that ledgers keep the contract of flush.WindowLedger.
func ExerciseWindows(t *testing.T, open func(t *testing.T) WindowInstance) {
	for name, test := range map[string]func(*testing.T, WindowInstance){
		"ApplyOnce":         applyOnce,
		"MergedWindow":      mergedWindow,
		"UnknownShard":      unknownShard,
		"Markers":           markers,
		"Clipping":          clipping,
		"HistoryBeyondEdge": historyBeyondTheEdge,
		"LargeWindow":       largeWindow,
		"Locks":             locks,
		"ConcurrentApply":   concurrentApply,
		"OneSnapshot":       oneSnapshot,
		"RandomWindows":     randomWindows,
		"Likes":             windowLikes,
		"Likers":            likers,
		"LikesAppliedOnce":  windowLikesOnce,
		"LikesMisjudged":    windowLikesMisjudged,
		"LikesOnTwoShards":  windowLikesOnTwoShards,
		"LikesRace":         windowLikesRace,
		"LikesClipped":      windowLikesClipped,
		"LargeLikeWindow":   largeLikeWindow,
		"Lists":             windowLists,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t)
			test(t, l)
			Audit(t, l.DB)
		})
	}
}

// Several windows are applied if the watermark is before all of them, and else none of them is: some of what they hold
// would count twice.
func mergedWindow(t *testing.T, l WindowInstance) {
	merged := func(first, last int64) flush.Window {
		w := adds(0, last, map[string]int64{"views/a": 1})
		w.First = first
		return w
	}
	for _, test := range []struct {
		first, last int64
		want        flush.Applied
		total       int
	}{
		{9, 10, flush.Applied{OK: true}, 1},
		{10, 12, flush.Applied{Previous: 10}, 1},
		{8, 11, flush.Applied{Previous: 10}, 1},
		{11, 13, flush.Applied{OK: true, Previous: 10}, 2},
		{12, 13, flush.Applied{Previous: 13}, 2},
	} {
		if got := apply(t, l, merged(test.first, test.last)); got.OK != test.want.OK || got.Previous != test.want.Previous {
			t.Errorf("windows %d to %d: %+v, want %+v", test.first, test.last, got, test.want)
		}
		wantRows(t, l, []string{"views/a"}, fmt.Sprint("views/a 0 ", test.total, " 0"))
	}
	wantWatermarks(t, l, 13, 0, 0)
}

// adds is a window that has only deltas.
func adds(n int, id int64, deltas map[string]int64) flush.Window {
	return flush.Window{Shard: n, ID: id, WindowPart: shard.WindowPart{Deltas: deltas}}
}

func apply(t testing.TB, l flush.WindowLedger, w flush.Window) flush.Applied {
	t.Helper()
	applied, err := l.Apply(context.Background(), w)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return applied
}

// wantAdjusted compares what Apply says of the keys to which it added something else than the window's deltas.
func wantAdjusted(t testing.TB, applied flush.Applied, clipped, corrected int, keys ...string) {
	t.Helper()
	slices.Sort(keys)
	if got := slices.Sorted(maps.Keys(applied.Adjusted)); !slices.Equal(got, keys) || applied.Clipped != clipped || applied.CorrectedLikes != corrected {
		t.Errorf("adjusted %q, clipped %d, corrected %d, want %q, %d, %d", got, applied.Clipped, applied.CorrectedLikes, keys, clipped, corrected)
	}
}

// wantRows compares what Bases returns of keys with rows written "key shard total spread".
func wantRows(t testing.TB, l flush.WindowLedger, keys []string, want ...string) {
	t.Helper()
	bases, err := l.Bases(context.Background(), keys)
	if err != nil {
		t.Fatalf("Bases: %v", err)
	}
	var got []string
	for _, row := range bases.Rows {
		got = append(got, fmt.Sprint(row.Key, " ", row.Shard, " ", row.Total, " ", row.Spread))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
}

func wantWatermarks(t testing.TB, l flush.WindowLedger, want ...int64) {
	t.Helper()
	bases, err := l.Bases(context.Background(), nil)
	if err != nil {
		t.Fatalf("Bases: %v", err)
	}
	if !slices.Equal(bases.Watermarks, want) {
		t.Errorf("watermarks %v, want %v", bases.Watermarks, want)
	}
	for shard, id := range want {
		if got, err := l.Watermark(context.Background(), shard); err != nil || got.ID != id {
			t.Errorf("watermark of shard %d: %v, %v, want %d", shard, got, err, id)
		}
	}
}

func applyOnce(t *testing.T, l WindowInstance) {
	wantWatermarks(t, l, 0, 0, 0)
	hour := time.Date(2030, 5, 6, 7, 0, 0, 0, time.UTC)
	first, second := hour.Add(-time.Millisecond).UnixMilli(), hour.UnixMilli()
	w := adds(1, first, map[string]int64{"views/a": 5, "views/b": -2})
	if got := apply(t, l, w); !got.OK || got.Previous != 0 || got.Clipped != 0 || len(got.Adjusted) != 0 {
		t.Errorf("first window: %+v", got)
	}
	for _, id := range []int64{first, first - 1} {
		if got := apply(t, l.Other, adds(1, id, w.Deltas)); got.OK || got.Previous != first {
			t.Errorf("window %d after window %d: %+v", id, first, got)
		}
	}
	// The watermarks of shards have nothing to do with each other.
	apply(t, l, adds(2, first-1, map[string]int64{"views/a": 100}))
	if got := apply(t, l.Other, adds(1, second, map[string]int64{"views/a": 1})); !got.OK || got.Previous != first {
		t.Errorf("second window: %+v", got)
	}
	// A window without changes counts as applied.
	if got := apply(t, l, flush.Window{Shard: 0, ID: 7}); !got.OK {
		t.Errorf("empty window: %+v", got)
	}
	wantWatermarks(t, l, 7, second, first-1)
	wantRows(t, l, []string{"views/a", "views/b", "views/c"}, "views/a 1 6 0", "views/a 2 100 0", "views/b 1 -2 0")

	rows, err := l.DB.QueryContext(t.Context(), `SELECT key, bucket, delta FROM counter_history ORDER BY key, bucket`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var key, delta string
		var bucket time.Time
		if err := rows.Scan(&key, &bucket, &delta); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(key, " ", hour.Sub(bucket), " ", delta))
	}
	want := []string{"views/a 1h0m0s 105", "views/a 0s 1", "views/b 1h0m0s -2"}
	if !slices.Equal(got, want) || rows.Err() != nil {
		t.Errorf("history %q, %v, want %q", got, rows.Err(), want)
	}
}

func unknownShard(t *testing.T, l WindowInstance) {
	if applied, err := l.Apply(t.Context(), adds(Shards, 5, map[string]int64{"views/a": 1})); err == nil {
		t.Errorf("a window of a shard that is not there was applied: %+v", applied)
	}
	if id, err := l.Watermark(t.Context(), Shards); err == nil {
		t.Errorf("a shard that is not there has watermark %v", id)
	}
	wantRows(t, l, []string{"views/a"})
}

// markers: of two markers of a key the last one stays, whatever their times and widths.
func markers(t *testing.T, l WindowInstance) {
	wide := shard.NewMarker(1_800_000_000_000, shard.MaxShards-1)
	apply(t, l, flush.Window{Shard: 0, ID: 10, WindowPart: shard.WindowPart{Deltas: map[string]int64{"views/a": 1, "views/b": 1}, Markers: map[string]shard.Marker{"views/a": 500, "views/new": 600}}})
	apply(t, l, flush.Window{Shard: 0, ID: 11, WindowPart: shard.WindowPart{Deltas: map[string]int64{"views/a": 1, "views/new": 2}, Markers: map[string]shard.Marker{"views/a": 700}}})
	apply(t, l, flush.Window{Shard: 0, ID: 12, WindowPart: shard.WindowPart{Markers: map[string]shard.Marker{"views/new": 550, "views/b": wide}}})
	apply(t, l, flush.Window{Shard: 0, ID: 13, WindowPart: shard.WindowPart{Markers: map[string]shard.Marker{"views/a": wide, "views/b": wide - 1}}})
	apply(t, l, flush.Window{Shard: 0, ID: 14, WindowPart: shard.WindowPart{Markers: map[string]shard.Marker{"views/a": 700}}})
	apply(t, l, flush.Window{Shard: 1, ID: 12, WindowPart: shard.WindowPart{Deltas: map[string]int64{"views/a": 1}, Markers: map[string]shard.Marker{"views/else": 900}}})
	// Not applied, so neither is its marker.
	apply(t, l, flush.Window{Shard: 0, ID: 14, WindowPart: shard.WindowPart{Markers: map[string]shard.Marker{"views/a": 1}}})

	for n, want := range []map[string]shard.Marker{
		{"views/a": 700, "views/b": wide - 1, "views/new": 550}, {"views/else": 900}, {},
	} {
		if got, err := l.Other.Markers(t.Context(), n); err != nil || !maps.Equal(got, want) {
			t.Errorf("markers of shard %d: %v, %v, want %v", n, got, err, want)
		}
	}
	wantRows(t, l, []string{"views/a", "views/b", "views/new"}, "views/a 0 2 700", "views/a 1 1 0", fmt.Sprint("views/b 0 1 ", wide-1), "views/new 0 2 550")
}

func clipping(t *testing.T, l WindowInstance) {
	const most, least = math.MaxInt64, math.MinInt64
	apply(t, l, adds(0, 1, map[string]int64{"views/up": most - 3, "views/down": least + 3, "views/full": most}))
	w := adds(0, 2, map[string]int64{"views/up": 10, "views/down": -10, "views/full": 1, "views/fits": 4})
	applied := apply(t, l, w)
	if !applied.OK || applied.Previous != 1 {
		t.Errorf("%+v, want it applied after window 1", applied)
	}
	wantAdjusted(t, applied, 3, 0, "views/up", "views/down", "views/full")
	if again := apply(t, l, w); again.OK {
		t.Errorf("a clipped window was applied twice: %+v", again)
	}
	wantRows(t, l, slices.Collect(maps.Keys(w.Deltas)), fmt.Sprint("views/up 0 ", most)+" 0", fmt.Sprint("views/down 0 ", least)+" 0",
		fmt.Sprint("views/full 0 ", most)+" 0", "views/fits 0 4 0")
}

// historyBeyondTheEdge fills a counter on two shards, and swings it from edge to edge within an hour.
func historyBeyondTheEdge(t *testing.T, l WindowInstance) {
	hour := time.Hour.Milliseconds()
	for _, w := range []struct{ id, delta int64 }{{1, math.MinInt64}, {hour, math.MaxInt64}, {hour + 1, math.MaxInt64}} {
		for shard := range 2 {
			if got := apply(t, l, adds(shard, w.id, map[string]int64{"views/a": w.delta})); !got.OK || got.Clipped != 0 {
				t.Errorf("window %d: %+v", w.id, got)
			}
		}
	}
	var total int64
	if err := l.DB.QueryRowContext(t.Context(), `SELECT count FROM counter_totals WHERE key = 'views/a'`).Scan(&total); err != nil || total != math.MaxInt64 {
		t.Errorf("total %d, %v: should stop at the edge", total, err)
	}
	// Back to where the sum of the shards fits, which the audit needs.
	apply(t, l, adds(1, 2*hour, map[string]int64{"views/a": -math.MaxInt64}))
}

func largeWindow(t *testing.T, l WindowInstance) {
	const n = 25_000
	w := flush.Window{Shard: 2, ID: 1, WindowPart: shard.WindowPart{Deltas: make(map[string]int64), Markers: make(map[string]shard.Marker)}}
	for i := range n {
		key := fmt.Sprint("views/", i)
		w.Deltas[key] = int64(i + 1)
		if i%2 == 0 {
			w.Markers[key] = 5
		}
	}
	w.Deltas["views/7"] = math.MaxInt64
	apply(t, l, w)
	w.ID = 2
	wantAdjusted(t, apply(t, l, w), 1, 0, "views/7")
	wantRows(t, l, []string{"views/0", "views/7", "views/24999"}, "views/0 2 2 5", fmt.Sprint("views/7 2 ", math.MaxInt64)+" 0", "views/24999 2 50000 0")
	if got, err := l.Markers(t.Context(), 2); err != nil || len(got) != n/2 {
		t.Errorf("%d markers, %v, want %d", len(got), err, n/2)
	}
}

func locks(t *testing.T, l WindowInstance) {
	lock := func(ledger flush.WindowLedger, shard int, want bool) func() {
		t.Helper()
		lock, ok, err := ledger.LockShard(t.Context(), shard)
		if err != nil || ok != want {
			t.Fatalf("LockShard(%d): %v, %v, want %v", shard, ok, err, want)
		}
		if ok {
			if err := lock.Held(t.Context()); err != nil {
				t.Errorf("the lock of shard %d is not held: %v", shard, err)
			}
		}
		return lock.Release
	}
	first := lock(l, 1, true)
	lock(l.Other, 1, false)
	lock(l, 1, false) // one worker, too, holds a lock once
	second := lock(l.Other, 2, true)
	first()
	lock(l.Other, 1, true)()
	second()
	lock(l, 2, true)()
}

func concurrentApply(t *testing.T, l WindowInstance) {
	const windows = 20
	var mu sync.Mutex
	applied := make(map[int64]int)
	var group sync.WaitGroup
	for worker := range 4 {
		ledger := []flush.WindowLedger{l, l.Other}[worker%2]
		group.Go(func() {
			for id := int64(1); id <= windows; id++ {
				for n := range Shards {
					got, err := ledger.Apply(context.Background(), adds(n, id, map[string]int64{"views/a": 1, "views/b": 2}))
					if err != nil {
						t.Errorf("Apply: %v", err)
						return
					}
					if got.OK {
						mu.Lock()
						applied[id*Shards+int64(n)]++
						mu.Unlock()
					}
				}
			}
		})
	}
	group.Wait()
	if len(applied) != windows*Shards {
		t.Errorf("%d windows were applied, want %d", len(applied), windows*Shards)
	}
	for _, n := range applied {
		if n != 1 {
			t.Errorf("a window was applied %d times", n)
		}
	}
	wantRows(t, l, []string{"views/a", "views/b"}, "views/a 0 20 0", "views/a 1 20 0", "views/a 2 20 0", "views/b 0 40 0", "views/b 1 40 0", "views/b 2 40 0")
}

// oneSnapshot reads bases while windows are applied, each of which adds 1: totals and watermarks are of one
// moment.
func oneSnapshot(t *testing.T, l WindowInstance) {
	const windows = 300
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		for id := int64(1); id <= windows; id++ {
			if _, err := l.Other.Apply(context.Background(), adds(1, id, map[string]int64{"views/a": 1})); err != nil {
				t.Errorf("Apply: %v", err)
				return
			}
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		bases, err := l.Bases(context.Background(), []string{"views/a"})
		if err != nil {
			t.Fatalf("Bases: %v", err)
		}
		total := int64(0)
		for _, row := range bases.Rows {
			total += row.Total
		}
		if total != bases.Watermarks[1] {
			t.Fatalf("total %d was read together with watermark %d", total, bases.Watermarks[1])
		}
	}
}
