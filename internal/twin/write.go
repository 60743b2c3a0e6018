package twin

import (
	"context"
	"fmt"

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
	return w.reply, nil
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
}

func (w *write) state(i int) *shardState { return w.r.shards[w.batch.Shards[i].Shard] }

func (w *write) batchBucket() string { return fmt.Sprintf("batch:%d", w.batch.Made/claimBucket) }

// decide settles what becomes of the batch and changes nothing.
func (w *write) decide() {
	if bucket := w.state(0).claims[w.batchBucket()]; bucket != nil {
		if _, w.repeated = bucket.values[w.batch.ID]; w.repeated {
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
		for k, e := range part.Entries {
			w.checkEntry(i, k, e)
			known := int64(0)
			if k < len(part.Markers) {
				known = part.Markers[k]
			}
			if marker := w.state(i).spread[e.Key]; marker != known {
				w.reply.Moved = append(w.reply.Moved, shard.MovedEntry{EntryRef: shard.EntryRef{Shard: i, Entry: k}, Marker: marker})
			}
		}
		for g := range part.Claims {
			w.checkClaims(i, g)
		}
	}
	if len(w.reply.Known)+len(w.reply.Moved)+len(w.reply.Aged)+len(w.reply.Overflowing) > 0 {
		w.reply.Status = shard.WriteRefused
	}
}

// checkEntry notes an entry that would carry the total over the edge, or the delta that its window holds.
func (w *write) checkEntry(i, k int, e counter.Entry) {
	s := w.state(i)
	total, _ := s.base(e.Key, w.now)
	sum := sumOf(total, e.Delta)
	for _, window := range s.windows {
		sum.add(window.deltas[e.Key])
	}
	if !sum.fits() {
		w.reply.Overflowing = append(w.reply.Overflowing, shard.EntryRef{Shard: i, Entry: k})
		return
	}
	if window := s.current(w.now, w.r.cfg.Window.Milliseconds()); window != nil {
		if _, fits := counter.Add(window.deltas[e.Key], e.Delta); !fits {
			w.inNewWindow[i] = true
		}
	}
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

// bucket returns the bucket that a group's claims are kept in, and when it may be forgotten.
func (w *write) bucket(g *shard.ClaimGroup) (name string, forget int64) {
	dedupe := w.r.cfg.Dedupe.Milliseconds()
	switch g.Kind {
	case shard.ClaimTimed:
		return fmt.Sprintf("id:%d", g.Bucket), g.Bucket + claimBucket + dedupe + margin
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
	w.state(0).claim(w.batchBucket(), batchForget, []string{w.batch.ID}, []string{""})
	for i := range w.batch.Shards {
		s, part := w.state(i), &w.batch.Shards[i]
		window := s.current(w.now, w.r.cfg.Window.Milliseconds())
		if window == nil || w.inNewWindow[i] {
			window = s.open(w.now)
		}
		for _, e := range part.Entries {
			window.deltas[e.Key] += e.Delta
		}
		for g := range part.Claims {
			name, forget := w.bucket(&part.Claims[g])
			s.claim(name, forget, part.Claims[g].Fields, part.Claims[g].Values)
		}
	}
}

func (s *shardState) claim(name string, forget int64, fields, values []string) {
	bucket := s.claims[name]
	if bucket == nil {
		bucket = &claims{values: make(map[string]string, len(fields))}
		s.claims[name] = bucket
	}
	bucket.forget = forget
	for i, field := range fields {
		bucket.values[field] = values[i]
	}
}
