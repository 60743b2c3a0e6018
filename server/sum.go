package server

import (
	"hash/maphash"
	"math/bits"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// keySeed makes the positions of keys unpredictable, so that nobody can choose keys that collide.
var keySeed = maphash.MakeSeed()

// sumEntries sums the entries of each key, in the order in which the keys appear first. If a sum leaves int64,
// overflowing is the index of the entry that carries it over, else -1. There may be at most
// counter.MaxEntries entries.
func sumEntries(in []*plusonev1.BatchEntry) (sums []counter.Entry, overflowing int) {
	sums = make([]counter.Entry, 0, len(in))
	// An open-addressing table of positions in sums, plus 1. At most half of it is used, so probes are
	// short. It holds no pointers and is a fraction of a map's cost.
	table := make([]uint16, 1<<bits.Len(uint(2*len(in))))
	mask := uint64(len(table) - 1)
	for i, e := range in {
		key, delta := e.GetKey(), e.GetDelta()
		at := maphash.String(keySeed, key) & mask
		for table[at] != 0 && sums[table[at]-1].Key != key {
			at = (at + 1) & mask
		}
		if table[at] == 0 {
			sums = append(sums, counter.Entry{Key: key, Delta: delta})
			table[at] = uint16(len(sums))
			continue
		}
		sum := &sums[table[at]-1]
		total, ok := counter.Add(sum.Delta, delta)
		if !ok {
			return nil, i
		}
		sum.Delta = total
	}
	return sums, -1
}
