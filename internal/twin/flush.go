package twin

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// Seal implements shard.Scripts.
func (r *Redis) Seal(_ context.Context, n int, applied shard.SealedWindow, fresh string) (shard.SealReply, error) {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	watermark, fin := applied.ID, s.fin
	// The ledger has only what was sealed here, and finished unless it is still here.
	holdsApplied := len(s.windows) > 0 && s.windows[0].id <= watermark
	reply := shard.SealReply{Time: now}
	reply.RolledBack = watermark > fin && !holdsApplied || watermark > 0 && watermark >= fin && !s.knows(applied)
	if reply.RolledBack {
		s.windows = slices.DeleteFunc(s.windows, func(w *window) bool { return w.id <= watermark })
		s.fin, s.gen = watermark, fresh
		s.tokens[watermark] = applied.Token
		s.rollback(now)
	}
	reply.Windows = len(s.windows)
	s.sealed = max(s.sealed, watermark)
	for _, w := range s.windows {
		if now-w.id < r.cfg.Window.Milliseconds() {
			continue
		}
		s.sealed = max(s.sealed, w.id)
		if s.tokens[w.id] == "" {
			s.tokens[w.id] = fresh
		}
		if len(reply.Sealed) < maxSealed {
			reply.Sealed = append(reply.Sealed, shard.SealedWindow{ID: w.id, Token: s.tokens[w.id]})
		} else {
			reply.More = true
		}
	}
	maps.DeleteFunc(s.tokens, func(id int64, _ string) bool { return id < min(watermark, fin) })
	reply.RestoreDue = s.restoreDue
	return reply, nil
}

// RestoreMarkers implements shard.Scripts.
func (r *Redis) RestoreMarkers(_ context.Context, n int, markers map[string]shard.Marker) error {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	for key, marker := range markers {
		s.mark(key, marker)
	}
	if len(markers) > 0 {
		s.noteMarked()
	}
	s.lost, s.restoreDue = now, false
	return nil
}

// Scan implements shard.Scripts, in one chunk.
func (r *Redis) Scan(_ context.Context, n int, id int64, _ uint64) (next uint64, part shard.WindowPart, err error) {
	_, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	w := newWindow(id)
	if at := s.find(id); at >= 0 {
		w = s.windows[at].clone()
	}
	return 0, shard.WindowPart{Deltas: w.deltas, LikeDeltas: w.likeSums, Likes: w.likes, Markers: w.markers}, nil
}

// Begin implements shard.Scripts.
func (r *Redis) Begin(_ context.Context, n int, w shard.SealedWindow, previous int64, gen string) (rolledBack bool, err error) {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	id := w.ID
	if s.fin == id || s.find(id) < 0 {
		return false, nil
	}
	rolledBack = s.fin != previous
	if !s.knows(w) {
		// The copy here is not the one that was sealed and applied.
		s.remove(id)
		s.tokens[id], s.sealed, rolledBack = w.Token, max(s.sealed, id), true
	}
	if rolledBack {
		s.gen = gen
		s.rollback(now)
	}
	s.fin = max(s.fin, id)
	return rolledBack, nil
}

// Move implements shard.Scripts.
func (r *Redis) Move(_ context.Context, n int, id int64, moves shard.Moves) error {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	at := s.find(id)
	if s.fin != id || at < 0 {
		return nil
	}
	w := s.windows[at]
	for _, d := range moves.Deltas {
		_, pending := w.deltas[d.Key]
		delete(w.deltas, d.Key)
		delete(w.likeSums, d.Key)
		name := baseName{s.gen, d.Key}
		b, cached := s.base(d.Key, now)
		switch {
		case d.Reload: // also without a delta: the window may have taken all likes of the key for repeats
			delete(s.bases, name)
		case pending && cached:
			b.total, b.likes = counter.AddSaturating(b.total, d.Delta), counter.AddSaturating(b.likes, d.Likes)
			s.bases[name] = b
		}
	}
	for _, key := range moves.Markers {
		delete(w.markers, key)
	}
	return nil
}

// End implements shard.Scripts.
func (r *Redis) End(_ context.Context, n int, id int64, likes int) error {
	_, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	if at := s.find(id); s.fin == id && at >= 0 && s.windows[at].size() == likes {
		s.remove(id)
	}
	return nil
}

// Discard implements shard.Scripts.
func (r *Redis) Discard(_ context.Context, n int, id int64, gen string) error {
	_, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	if s.find(id) < 0 {
		return nil
	}
	s.remove(id)
	s.gen, s.fin = gen, max(s.fin, id)
	return nil
}

// Sweep implements shard.Scripts.
func (r *Redis) Sweep(_ context.Context, n int) error {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	forget := make(map[string]int64, len(s.claims)+len(s.members))
	for name, bucket := range s.claims {
		forget[name] = bucket.forget
	}
	for name, bucket := range s.members {
		forget[name] = bucket.forget
	}
	names := slices.SortedFunc(maps.Keys(forget), func(a, b string) int {
		return cmp.Or(cmp.Compare(forget[a], forget[b]), cmp.Compare(a, b))
	})
	for _, name := range names[:min(len(names), maxSwept)] {
		if forget[name] < now {
			delete(s.claims, name)
			delete(s.members, name)
		}
	}
	return nil
}
