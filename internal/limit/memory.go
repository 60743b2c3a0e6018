package limit

import (
	"context"
	"hash/maphash"
	"sync"
	"time"
)

const (
	// memoryBuckets bounds the buckets that are not full, at some 40 bytes each.
	memoryBuckets = 1 << 19
	memoryStripes = 64
	// memorySample is how many buckets are looked at to make room.
	memorySample = 16
)

// Memory keeps the buckets of one process in bounded memory. When there is no room, of a few buckets the one that would be
// full first is forgotten, which makes it full. It is safe for concurrent use.
type Memory struct {
	seed    maphash.Seed
	started time.Time
	metrics *Metrics
	stripes [memoryStripes]memoryStripe
	// room is how many buckets a stripe has.
	room int
}

type memoryStripe struct {
	mu sync.Mutex
	// full is when a bucket will be full, in nanoseconds from the start.
	full map[uint64]int64
}

// NewMemory returns a limiter whose buckets are full.
func NewMemory(metrics *Metrics) *Memory {
	m := &Memory{seed: maphash.MakeSeed(), started: time.Now(), metrics: metrics, room: memoryBuckets / memoryStripes}
	for i := range m.stripes {
		m.stripes[i].full = make(map[uint64]int64)
	}
	return m
}

// Take takes tokens from all of the buckets, which are distinct, or from none if one of them lacks some. While it finds out
// which, they may be missing to others for a moment.
func (m *Memory) Take(_ context.Context, wants []Want) (Verdict, error) {
	now := int64(time.Since(m.started))
	verdict := Verdict{Allowed: true}
	taken := 0
	for i := range wants {
		wait := m.take(&wants[i], now, verdict.Allowed)
		if verdict.Allowed && wait == 0 {
			taken++
		}
		if wait > verdict.Wait {
			verdict = Verdict{Lacking: i, Wait: wait}
		}
	}
	if !verdict.Allowed {
		for i := range wants[:taken] {
			m.giveBack(&wants[i])
		}
	}
	return verdict, nil
}

// take takes tokens, or says how long they lack. Unless it commits it only looks.
func (m *Memory) take(w *Want, now int64, commit bool) time.Duration {
	id := hashOf(m.seed, w)
	s := &m.stripes[id%memoryStripes]
	s.mu.Lock()
	defer s.mu.Unlock()
	full, kept := s.full[id]
	after, wait := w.take(full, now)
	if wait > 0 || !commit {
		return wait
	}
	if !kept && len(s.full) >= m.room {
		s.evict(now, m.metrics)
	}
	s.full[id] = after
	return 0
}

func (m *Memory) giveBack(w *Want) {
	id := hashOf(m.seed, w)
	s := &m.stripes[id%memoryStripes]
	s.mu.Lock()
	defer s.mu.Unlock()
	if full, kept := s.full[id]; kept {
		s.full[id] = full - w.takes()
	}
}

// evict makes room: for many, if there are buckets that are full.
func (s *memoryStripe) evict(now int64, metrics *Metrics) {
	var first uint64
	var firstFull int64
	seen, dropped := 0, false
	for id, full := range s.full { // which begins somewhere
		if full <= now {
			delete(s.full, id)
			dropped = true
		} else if seen == 0 || full < firstFull {
			first, firstFull = id, full
		}
		if seen++; seen == memorySample {
			break
		}
	}
	if !dropped {
		delete(s.full, first)
		metrics.evicted.Inc()
	}
}

// hashOf identifies the bucket of a want. Who does not know the seed cannot have two of them collide.
func hashOf(seed maphash.Seed, w *Want) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_ = h.WriteByte(byte(w.Kind)) // it never fails
	_, _ = h.WriteString(w.Scope)
	_ = h.WriteByte(' ')
	_, _ = h.WriteString(w.Who)
	_ = h.WriteByte(' ')
	_, _ = h.WriteString(w.Key)
	return h.Sum64()
}
