package shard

import (
	"time"

	"github.com/cespare/xxhash/v2"
)

const (
	// hotCells is the size of the sketch. A cell counts all keys that fall into it.
	hotCells = 8192
	// hotCandidates bounds the keys that are counted one by one.
	hotCandidates = 1024
)

// hotDetector finds keys that change often. A sketch counts all changes; the keys of a cell that has reached
// the threshold are counted one by one from then on, so a cold key that shares a cell with a hot one
// is not taken for hot. A key with at least twice the threshold of changes a second is found within a
// second. It is used by one goroutine.
type hotDetector struct {
	threshold uint32 // changes a second, 0 finds nothing
	// of, if not nil, tells the threshold of a key that has one of its own.
	of    func(key string) (threshold int, own bool)
	until time.Time
	cells [hotCells]uint32
	exact map[string]uint32
	found map[string]bool // in this second
}

func newHotDetector(threshold int, of func(key string) (int, bool)) *hotDetector {
	return &hotDetector{
		threshold: uint32(threshold), of: of, exact: map[string]uint32{}, found: map[string]bool{},
	}
}

// begin is called before the counts of a batch are added.
func (d *hotDetector) begin(now time.Time) {
	if now.Before(d.until) {
		return
	}
	d.until = now.Add(time.Second)
	d.cells = [hotCells]uint32{}
	clear(d.exact)
	clear(d.found)
}

// add counts n changes of a key and reports whether that makes it hot, once a second.
func (d *hotDetector) add(key string, n int) bool {
	threshold := d.threshold
	if d.of != nil {
		if n, own := d.of(key); own {
			threshold = uint32(n)
		}
	}
	if threshold == 0 {
		return false
	}
	cell := &d.cells[xxhash.Sum64String(key)%hotCells]
	if *cell < threshold {
		*cell += uint32(n)
		return false
	}
	count, counted := d.exact[key]
	if !counted && len(d.exact) >= hotCandidates {
		return false
	}
	count += uint32(n)
	d.exact[key] = count
	if count < threshold || d.found[key] {
		return false
	}
	d.found[key] = true
	return true
}
