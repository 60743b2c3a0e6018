package twin

import (
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// likeDecisions is what becomes of a shard's likes in a batch.
type likeDecisions struct {
	results []shard.LikeResult // by position
	// states are those that are recorded.
	states map[counter.Pair]shard.PendingLike
	// sums are what likes add to the keys of which one is changed, added what the entries add.
	sums, added map[string]int64
	// repeats are the first ones of pairs. They are recorded if the batch does not change the pair.
	repeats map[counter.Pair]shard.PendingLike
}

// decideLikes decides the likes of a part one after the other, and whether its window can take them.
func (w *write) decideLikes(i int) *likeDecisions {
	part := &w.batch.Shards[i]
	d := &likeDecisions{
		states: map[counter.Pair]shard.PendingLike{}, sums: map[string]int64{}, added: map[string]int64{},
		repeats: map[counter.Pair]shard.PendingLike{},
	}
	for _, e := range w.entries[i] {
		d.added[e.Key] = e.Delta
	}
	for k := range part.Likes {
		d.results = append(d.results, w.decideLike(i, &part.Likes[k], d))
	}
	for key, sum := range d.sums {
		if !w.pendingWith(i, key, d.added[key], sum).fits() {
			w.inNewWindow[i] = true
		}
	}
	window := w.state(i).current(w.now, w.r.cfg.Window.Milliseconds())
	for pair, repeat := range d.repeats {
		if _, changed := d.states[pair]; changed {
			continue
		}
		// The change that is repeated must not be forgotten.
		if window != nil && !w.inNewWindow[i] {
			if there, ok := window.likes[pair]; ok && there.Liked == repeat.Liked {
				continue
			}
		}
		d.states[pair] = repeat
	}
	return d
}

// decideLike notes in d what a like does, after those before it.
func (w *write) decideLike(i int, like *shard.LikeWrite, d *likeDecisions) shard.LikeResult {
	state, known := d.states[like.Pair]
	if !known {
		state, known = w.knownLike(i, like)
	}
	if !known {
		return shard.LikeUnknown
	}
	at := max(w.reply.Micros, state.Micros+1)
	if like.At != 0 {
		if at = like.At; state.Micros >= at {
			return shard.LikeUnchanged
		}
	}
	if state.Liked == like.Liked {
		if _, there := d.repeats[like.Pair]; !there {
			d.repeats[like.Pair] = shard.PendingLike{Liked: like.Liked, Micros: at, Since: state.Since}
		}
		return shard.LikeUnchanged
	}
	delta := int64(1)
	if !like.Liked {
		delta = -1
	}
	added := sumOf(d.added[like.Key], d.sums[like.Key], delta) // which a window of its own must be able to hold
	if !added.fits() || !w.totalWith(i, like.Key, d.added[like.Key], d.sums[like.Key], delta).fits() {
		return shard.LikeOverflows
	}
	d.sums[like.Key] += delta
	isNew := like.Liked && state.Micros == 0 && like.Known.Source == shard.LikeLoaded
	d.states[like.Pair] = shard.PendingLike{Liked: like.Liked, New: isNew, Micros: at, Since: at}
	return shard.LikeChanged
}

// knownLike is the state of a like as the shard knows it, or else as its sender does.
func (w *write) knownLike(i int, like *shard.LikeWrite) (shard.PendingLike, bool) {
	s := w.state(i)
	if state, _, known := s.like(like.Pair, w.now, w.r.cfg.Window.Milliseconds()); known {
		return state, true
	}
	switch like.Known.Source {
	case shard.LikeLoaded:
		return like.Known.PendingLike, s.covered(like.Known.Watermark, w.now, w.r.cfg.Window.Milliseconds())
	case shard.LikeSupposed:
		return shard.PendingLike{Liked: !like.Liked}, true
	case shard.LikeUnasked:
	}
	return shard.PendingLike{}, false
}

// apply records the decisions in a window, which may have been opened for them, and in membership.
func (d *likeDecisions) apply(s *shardState, window *window, opened bool, now, length int64) {
	s.liked = s.liked || len(d.states) > 0
	since := window.id
	if opened {
		since--
	}
	for pair, state := range d.states {
		window.likes[pair] = state
		s.remember(pair, state, since, now, length)
	}
	for key, sum := range d.sums {
		window.deltas[key] += sum
		window.likeSums[key] += sum
	}
}

// claimValue is what is kept with a claim: for that of a like, also what became of it. One that was not done leaves no
// claim.
func (d *likeDecisions) claimValue(part *shard.ShardWrite, group, field int) (value string, keep bool) {
	value = part.Claims[group].Values[field]
	for k := range part.Likes {
		if part.Likes[k].Group != group || part.Likes[k].Field != field {
			continue
		}
		switch result := d.results[k]; result {
		case shard.LikeChanged, shard.LikeUnchanged:
			return value + string(result), true
		case shard.LikeUnknown, shard.LikeOverflows:
			return "", false
		}
	}
	return value, true
}
