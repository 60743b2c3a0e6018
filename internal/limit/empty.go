package limit

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// emptySlots bounds the buckets that are known to be empty, to some 100 bytes each.
const emptySlots = 1 << 14

// maxKnown is for how long Redis is not asked about an empty bucket again: it may have lost the bucket, which is full then.
// Once in that time is no load, however often a caller tries.
const maxKnown = time.Second

// emptyBuckets are buckets that Redis said to lack tokens. Until they can have come, and for maxKnown at most, there is no
// need to ask again. One that is noted takes the place of another. It is safe for concurrent use.
type emptyBuckets struct {
	seed  maphash.Seed
	slots []atomic.Pointer[empty]
}

// empty is never changed.
type empty struct {
	id    uint64
	rate  Rate
	need  int64     // so many tokens are not there
	until time.Time // they are not there
	asked time.Time // when Redis said so
}

func newEmptyBuckets() *emptyBuckets {
	return &emptyBuckets{seed: maphash.MakeSeed(), slots: make([]atomic.Pointer[empty], emptySlots)}
}

// wait is how long a bucket is known to lack tokens, 0 if it is not.
func (e *emptyBuckets) wait(w *Want, now time.Time) time.Duration {
	id := hashOf(e.seed, w)
	b := e.slots[id%emptySlots].Load()
	if b == nil || b.id != id || b.rate != w.Rate || w.needed() < b.need || now.Sub(b.asked) >= maxKnown {
		return 0
	}
	return max(0, b.until.Sub(now))
}

// note is called with what Redis said at a time: for how long tokens will lack.
func (e *emptyBuckets) note(w *Want, now time.Time, wait time.Duration) {
	id := hashOf(e.seed, w)
	e.slots[id%emptySlots].Store(&empty{id: id, rate: w.Rate, need: w.needed(), until: now.Add(wait), asked: now})
}
