package flush

import (
	"maps"
	"time"

	"github.com/plusone-dev/plusone/shard"
)

const (
	// mergedFields is from where on a merged window takes no other. What one takes of memory, and of the time that a
	// transaction may take, is bounded by that and a window.
	mergedFields = 50_000
	// mergedWindows bounds how many are merged, by which mergedDelta is as small as it is.
	mergedWindows = 64
	// mergedDelta is the largest delta in a window that may be merged: sums then stay in int64.
	mergedDelta = 1 << 56
	// mergedTime is the finest bucket of history: a merged window must be of one.
	mergedTime = time.Minute
)

// takesMore reports whether the next of the windows that are due may be merged with the first n, which w holds.
func (w *Window) takesMore(due []shard.SealedWindow, n int) bool {
	bucket := func(id int64) int64 { return id / mergedTime.Milliseconds() }
	return n < len(due) && n < mergedWindows && bucket(due[n].ID) == bucket(w.First) &&
		len(w.Deltas)+len(w.Likes) < mergedFields
}

// merge adds the window that follows, and reports whether it could: a pair of which both have a state is set twice, one
// after the other, by which the ledger tells what each of them changes. First says that w holds a single window, whose
// maps are left as they are.
func (w *Window) merge(next *scannedWindow, first bool) bool {
	for pair := range next.Likes {
		if _, both := w.Likes[pair]; both {
			return false
		}
	}
	if first && !small(w.WindowPart) || !small(next.WindowPart) {
		return false
	}
	if first {
		w.WindowPart = shard.WindowPart{
			Deltas: maps.Clone(w.Deltas), LikeDeltas: maps.Clone(w.LikeDeltas), Likes: maps.Clone(w.Likes), Markers: maps.Clone(w.Markers),
		}
	}
	for key, delta := range next.Deltas {
		w.Deltas[key] += delta
	}
	for key, delta := range next.LikeDeltas {
		w.LikeDeltas[key] += delta
	}
	maps.Copy(w.Likes, next.Likes)
	maps.Copy(w.Markers, next.Markers) // of two markers the one that comes last is in force, as in the ledger
	w.ID, w.Token = next.ID, next.Token
	return true
}

// small reports whether the deltas of mergedWindows such windows can be summed.
func small(part shard.WindowPart) bool {
	for _, deltas := range []map[string]int64{part.Deltas, part.LikeDeltas} {
		for _, delta := range deltas {
			if delta > mergedDelta || delta < -mergedDelta {
				return false
			}
		}
	}
	return true
}

// Oldest is the id of the first window that it holds.
func (w *Window) Oldest() int64 {
	if w.First == 0 {
		return w.ID
	}
	return w.First
}
