package twin

import (
	"context"
	"fmt"
	"slices"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// Write implements shard.Scripts.
func (r *Redis) Write(_ context.Context, b *shard.WriteBatch) (shard.WriteReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	micros := r.now()
	w := write{r: r, batch: b, now: micros / 1000, reply: shard.WriteReply{Micros: micros}}
	w.decide()
	if w.reply.Status == shard.WriteApplied && !w.repeated {
		w.apply()
	}
	var err error
	if w.reply.Status == shard.WriteApplied && len(b.Counts) > 0 {
		w.reply.Counts, err = r.read(b.Counts)
	}
	return w.reply, err
}

// write is one call of Write.
type write struct {
	r     *Redis
	batch *shard.WriteBatch
	now   int64
	reply shard.WriteReply
	// repeated: an earlier call applied the batch.
	repeated bool
	// inNewWindow says, by position in the batch, that a shard's window cannot take its part.
	inNewWindow []bool
	// likes are the decisions on each shard's likes, by position in the batch.
	likes []*likeDecisions
	// entries are those of each shard, with the deltas of resets, by position in the batch.
	entries [][]counter.Entry
}

func (w *write) state(i int) *shardState { return w.r.shards[w.batch.Shards[i].Shard] }

func (w *write) batchBucket() string { return fmt.Sprintf("batch:%d", w.batch.Made/claimBucket) }

// decide settles what becomes of the batch and changes nothing.
func (w *write) decide() {
	if bucket := w.state(0).claims[w.batchBucket()]; bucket != nil {
		var likes string
		if likes, w.repeated = bucket.values[w.batch.ID]; w.repeated {
			w.reply.Likes = []shard.LikeResult(likes)
			return
		}
	}
	made := w.batch.Made
	late := w.now > made+batchLifetime || w.now < made-batchLifetime
	for i := range w.batch.Shards {
		late = late || made <= w.state(i).lost
	}
	if late {
		w.reply.Status = shard.WriteLate
		return
	}
	w.inNewWindow = make([]bool, len(w.batch.Shards))
	for i := range w.batch.Shards {
		part := &w.batch.Shards[i]
		w.entries = append(w.entries, w.settleResets(i))
		for k, e := range w.entries[i] {
			w.checkEntry(i, k, e)
			known := shard.Marker(0)
			if k < len(part.Markers) {
				known = part.Markers[k]
			}
			w.checkMarker(i, k, e.Key, known)
		}
		for k, like := range part.Likes {
			w.checkMarker(i, len(part.Entries)+k, like.Key, like.Marker)
		}
		for g := range part.Claims {
			w.checkClaims(i, g)
		}
	}
	if len(w.reply.Known)+len(w.reply.Moved)+len(w.reply.Aged)+len(w.reply.Overflowing) > 0 {
		w.reply.Status = shard.WriteRefused
		return
	}
	for i := range w.batch.Shards {
		d := w.decideLikes(i)
		w.likes = append(w.likes, d)
		w.reply.Likes = append(w.reply.Likes, d.results...)
	}
}

// checkMarker notes an entry or like whose sender knows another marker of its key.
func (w *write) checkMarker(i, position int, key string, known shard.Marker) {
	if marker := w.state(i).spread[key]; marker != known {
		ref := shard.EntryRef{Shard: i, Entry: position}
		w.reply.Moved = append(w.reply.Moved, shard.MovedEntry{EntryRef: ref, Marker: marker})
	}
}

// checkEntry notes an entry that would carry the total over the edge, or the delta that its window holds.
func (w *write) checkEntry(i, k int, e counter.Entry) {
	_, cached := w.state(i).base(e.Key, w.now)
	if w.batch.Shards[i].Reset && !cached || !w.totalWith(i, e.Key, e.Delta).fits() {
		w.reply.Overflowing = append(w.reply.Overflowing, shard.EntryRef{Shard: i, Entry: k})
	} else if !w.pendingWith(i, e.Key, e.Delta).fits() {
		w.inNewWindow[i] = true
	}
}

// settleResets returns the entries of a part: of resets, with the deltas that bring the increments to 0.
func (w *write) settleResets(i int) []counter.Entry {
	part, s := &w.batch.Shards[i], w.state(i)
	if !part.Reset {
		return part.Entries
	}
	entries := slices.Clone(part.Entries)
	for k := range entries {
		b, cached := s.base(entries[k].Key, w.now)
		if !cached {
			continue
		}
		increments := sumOf(b.likes)
		increments.subtract(b.total)
		for _, window := range s.windows {
			increments.subtract(window.deltas[entries[k].Key])
			increments.add(window.likeSums[entries[k].Key])
		}
		entries[k].Delta = increments.saturated()
	}
	return entries
}

// totalWith is what a shard would hold of a key with the deltas.
func (w *write) totalWith(i int, key string, deltas ...int64) *sum {
	s := w.state(i)
	b, _ := s.base(key, w.now)
	sum := sumOf(deltas...)
	sum.add(b.total)
	for _, window := range s.windows {
		sum.add(window.deltas[key])
	}
	return sum
}

// pendingWith is what a shard's current window would hold of a key with the deltas.
func (w *write) pendingWith(i int, key string, deltas ...int64) *sum {
	sum := sumOf(deltas...)
	if window := w.state(i).current(w.now, w.r.cfg.Window.Milliseconds()); window != nil {
		sum.add(window.deltas[key])
	}
	return sum
}

// checkClaims notes what is known of a group's claims, and whether its times are out of range.
func (w *write) checkClaims(i, g int) {
	s, group := w.state(i), &w.batch.Shards[i].Claims[g]
	dedupe, opaque := w.r.cfg.Dedupe.Milliseconds(), w.r.opaqueBucket()
	aged := false
	switch group.Kind {
	case shard.ClaimTimed:
		aged = group.Oldest < w.now-dedupe || group.Newest > w.now+counter.MaxEarly.Milliseconds() || group.Oldest <= s.lost
	case shard.ClaimOpaque:
		aged = s.lost > 0 && w.now <= s.lost+opaque
		number := w.now / opaque
		w.lookUp(i, g, opaqueName(number-1))
		// Clocks agree within a window: a claim may have been made by one that was ahead.
		if ahead := (w.now + w.r.cfg.Window.Milliseconds()) / opaque; ahead > number {
			w.lookUp(i, g, opaqueName(number+1))
		}
	case shard.ClaimOnce:
		aged = group.Current && w.now-w.now%group.Period != group.Bucket
	}
	name, _ := w.bucket(group)
	w.lookUp(i, g, name)
	if aged {
		w.reply.Aged = append(w.reply.Aged, shard.AgedGroup{Shard: i, Group: g, Lost: s.lost})
	}
}

func opaqueName(number int64) string { return fmt.Sprintf("any:%d", number) }

func timedName(bucket int64) string { return fmt.Sprintf("id:%d", bucket) }

// bucket returns the bucket that a group's claims are kept in, and when it may be forgotten.
func (w *write) bucket(g *shard.ClaimGroup) (name string, forget int64) {
	dedupe := w.r.cfg.Dedupe.Milliseconds()
	switch g.Kind {
	case shard.ClaimTimed:
		return timedName(g.Bucket), g.Bucket + claimBucket + dedupe + margin
	case shard.ClaimOpaque:
		opaque := w.r.opaqueBucket()
		number := w.now / opaque
		return opaqueName(number), (number+2)*opaque + margin
	default:
		forget = g.Bucket + g.Period + dedupe + counter.MaxEarly.Milliseconds() + margin
		return fmt.Sprintf("once:%d:%d", g.Period, g.Bucket), forget
	}
}

func (w *write) lookUp(i, g int, name string) {
	bucket := w.state(i).claims[name]
	if bucket == nil {
		return
	}
	for f, field := range w.batch.Shards[i].Claims[g].Fields {
		if value, known := bucket.values[field]; known {
			w.reply.Known = append(w.reply.Known, shard.KnownClaim{Shard: i, Group: g, Field: f, Value: value})
		}
	}
}

// apply makes all changes of the batch and leaves its claims.
func (w *write) apply() {
	batchForget := (w.batch.Made/claimBucket+1)*claimBucket + batchLifetime + margin
	w.state(0).claim(w.batchBucket(), batchForget, w.batch.ID, string(w.reply.Likes))
	for i := range w.batch.Shards {
		s, part, likes := w.state(i), &w.batch.Shards[i], w.likes[i]
		if len(part.Entries)+len(likes.states) > 0 {
			window := s.current(w.now, w.r.cfg.Window.Milliseconds())
			opened := window == nil || w.inNewWindow[i]
			if opened {
				window = s.open(w.now)
			}
			for _, e := range w.entries[i] {
				window.deltas[e.Key] += e.Delta
			}
			likes.apply(s, window, opened, w.now, w.r.cfg.Window.Milliseconds())
		}
		for g := range part.Claims {
			name, forget := w.bucket(&part.Claims[g])
			for f, field := range part.Claims[g].Fields {
				if value, done := likes.claimValue(part, g, f); done {
					s.claim(name, forget, field, value)
				}
			}
		}
	}
}

// claim keeps a claim in a bucket.
func (s *shardState) claim(name string, forget int64, field, value string) {
	bucket := s.claims[name]
	if bucket == nil {
		bucket = &claims{values: map[string]string{}}
		s.claims[name] = bucket
	}
	bucket.forget = forget
	bucket.values[field] = value
}
