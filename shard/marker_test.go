package shard

import (
	"fmt"
	"math"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/counter"
)

// TestMarker: a marker says what it was made of, is never taken for one of the other kind, and is exact where numbers are
// doubles.
func TestMarker(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		// From the first moment at which a marker with a width cannot be taken for a plain one to the last at which it is
		// exact.
		ms := rapid.Int64Range(1<<40, 1<<43-1).Draw(rt, "ms")
		width, shards := rapid.IntRange(0, MaxShards-1).Draw(rt, "width"), rapid.IntRange(1, MaxShards).Draw(rt, "shards")
		m := NewMarker(ms, width)
		want := width
		if width == 0 || width > shards {
			want = shards
		}
		if m.Time() != ms || m.Width(shards) != want {
			rt.Errorf("%d over %d of %d shards is %d: %d over %d", ms, width, shards, m, m.Time(), m.Width(shards))
		}
		if width == 0 && m != Marker(ms) {
			rt.Errorf("%d over all shards is %d", ms, m)
		}
		if int64(float64(m)) != int64(m) || fmt.Sprintf("%.0f", float64(m)) != m.String() {
			rt.Errorf("%d is not exact as a double", m)
		}
		if n, err := strconv.ParseInt(m.String(), 10, 64); err != nil || Marker(n) != m {
			rt.Errorf("%d is written as %s", m, m)
		}
	})
	for ms, date := range map[int64]string{1 << 40: "2004-11-03", 1<<43 - 1: "2248-09-26"} {
		if got := time.UnixMilli(ms).UTC().Format(time.DateOnly); got != date {
			t.Errorf("%d is on %s, not on %s", ms, got, date)
		}
	}
	// What is no marker, and the edges.
	for m, want := range map[Marker][2]int64{
		0: {0, 8}, 1: {1, 8}, leastWide - 1: {1<<50 - 1, 8}, leastWide + 1: {1 << 40, 1}, leastWide: {1 << 40, 8},
		1<<53 - 1: {1<<43 - 1, 8}, 1<<53 - 1024 + 7: {1<<43 - 1, 7}, math.MaxInt64: {math.MaxInt64 >> 10, 8},
	} {
		if m.Time() != want[0] || m.Width(8) != int(want[1]) {
			t.Errorf("%d is of %d over %d shards, want %v", m, m.Time(), m.Width(8), want)
		}
	}
}

// TestPlaces: the places of a key are as many as its marker says, its home among them, and are used alike; a key that is
// spread over all shards has the places that it had before markers had widths.
func TestPlaces(t *testing.T) {
	t.Parallel()
	const shards, texts, ms = 8, 4_000, 1_800_000_000_000
	for home := range shards {
		for width := range shards {
			m, n := NewMarker(ms, width), make([]int, shards)
			for i := range texts {
				text := fmt.Sprint("actor-", i)
				place := m.place(home, text, shards)
				n[place]++
				if width == 0 && place != hash(text, shards) {
					t.Fatalf("%s is at %d, not at %d", text, place, hash(text, shards))
				}
			}
			want := m.Width(shards)
			for k := range shards {
				got, share := n[(home+k)%shards], texts/want
				if k < want && (got < share*8/10 || got > share*12/10) || k >= want && got > 0 {
					t.Errorf("home %d, width %d: %v", home, width, n)
					break
				}
			}
		}
	}
}

// TestTurnsStayWithinTheWidth: changes without a claim go to the places of their key alone, and to all of them.
func TestTurnsStayWithinTheWidth(t *testing.T) {
	t.Parallel()
	const shards, key = 8, "hot"
	s := &Store{cfg: Config{Shards: shards}, markers: newMarkers(), clock: newClock()}
	s.router = router{shards: shards, markers: s.markers, clock: s.clock, turn: s.turn}
	home := Home(key, shards)
	for width := range shards {
		m := NewMarker(1_800_000_000_000, width)
		s.markers.learn(key, m)
		seen := map[int]bool{}
		for range 64 * shards * 2 {
			seen[s.router.route(&counter.Change{}, key, 0).shard] = true
		}
		for k := range shards {
			if seen[(home+k)%shards] != (k < m.Width(shards)) {
				t.Errorf("width %d, home %d: %v", width, home, seen)
				break
			}
		}
	}
}
