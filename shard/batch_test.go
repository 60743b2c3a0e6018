package shard

import (
	"slices"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
)

// TestOnesFirst: what belongs to an entry moves with it.
func TestOnesFirst(t *testing.T) {
	t.Parallel()
	s := shardBatch{
		entries: []counter.Entry{{Key: "a", Delta: 2}, {Key: "b", Delta: 1}, {Key: "c", Delta: -1}, {Key: "d", Delta: 1}},
		markers: []Marker{10, 20, 30, 40},
		changes: []int{1, 2, 3, 4},
	}
	s.onesFirst()
	entries := []counter.Entry{{Key: "b", Delta: 1}, {Key: "d", Delta: 1}, {Key: "c", Delta: -1}, {Key: "a", Delta: 2}}
	if !slices.Equal(s.entries, entries) || !slices.Equal(s.markers, []Marker{20, 40, 30, 10}) || !slices.Equal(s.changes, []int{2, 4, 3, 1}) {
		t.Errorf("the entries %v with markers %v and %v changes", s.entries, s.markers, s.changes)
	}
}
