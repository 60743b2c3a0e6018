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
func (r *Redis) RestoreMarkers(_ context.Context, n int, markers map[string]int64) error {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	for key, marker := range markers {
		s.mark(key, marker)
	}
	s.lost, s.restoreDue = now, false
	return nil
}

// Scan implements shard.Scripts, in one chunk.
func (r *Redis) Scan(_ context.Context, n int, id int64, _ uint64) (next uint64, deltas, markers map[string]int64, err error) {
	_, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	if at := s.find(id); at >= 0 {
		return 0, maps.Clone(s.windows[at].deltas), maps.Clone(s.windows[at].markers), nil
	}
	return 0, map[string]int64{}, map[string]int64{}, nil
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
func (r *Redis) Move(_ context.Context, n int, id int64, deltas []counter.Entry, markers []string) error {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	at := s.find(id)
	if s.fin != id || at < 0 {
		return nil
	}
	w := s.windows[at]
	for _, e := range deltas {
		if _, pending := w.deltas[e.Key]; !pending {
			continue
		}
		delete(w.deltas, e.Key)
		if total, cached := s.base(e.Key, now); cached {
			name := baseName{s.gen, e.Key}
			s.bases[name] = base{total: counter.AddSaturating(total, e.Delta), expires: s.bases[name].expires}
		}
	}
	for _, key := range markers {
		delete(w.markers, key)
	}
	return nil
}

// End implements shard.Scripts.
func (r *Redis) End(_ context.Context, n int, id int64) error {
	_, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	if at := s.find(id); s.fin == id && at >= 0 && len(s.windows[at].deltas)+len(s.windows[at].markers) == 0 {
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
	names := slices.SortedFunc(maps.Keys(s.claims), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.claims[a].forget, s.claims[b].forget), cmp.Compare(a, b))
	})
	for _, name := range names[:min(len(names), maxSwept)] {
		if s.claims[name].forget < now {
			delete(s.claims, name)
		}
	}
	return nil
}
