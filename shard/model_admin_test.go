package shard_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
)

// resetKey is the key that is reset now and then. What it holds besides likes is the sum of the operations that were counted
// since the last reset. While Redis does not go back in time, a read and the drained ledger lie within what is known of
// that; whatever Redis does, they agree in the end.
const resetKey = "c"

// bounds are the least and the most that a key may hold besides likes.
type bounds struct{ low, high int64 }

func (b *bounds) include(other bounds) {
	b.low, b.high = min(b.low, other.low), max(b.high, other.high)
}

// resets is what a world knows of resetKey.
type resets struct {
	bounds
	count int
	// doubts has the operations that may have been counted since the last reset, and old those that may have been before.
	// Those that are known to be counted are in neither: a repeat of one changes nothing, whatever becomes of its answer.
	doubts, old, counted map[*operation]bool
	calls                []counter.Change // resets that were answered
}

// answered follows the answer to an operation. Whatever was counted was counted before the call returned.
func (z *resets) answered(w *world, o *operation, r counter.Receipt, err error) {
	if o.key != resetKey {
		return
	}
	if z.doubts == nil {
		z.doubts, z.old, z.counted = map[*operation]bool{}, map[*operation]bool{}, map[*operation]bool{}
	}
	switch {
	case errors.Is(err, counter.ErrInDoubt):
		if !z.doubts[o] && !z.counted[o] {
			z.doubts[o] = true
			z.high += o.delta
		}
	case err != nil: // an id that is too old says nothing of an earlier doubt
	case r.Outcome == counter.Applied:
		if !z.doubts[o] {
			z.high += o.delta
		}
		z.low += o.delta
		z.counted[o] = true
		delete(z.doubts, o)
		delete(z.old, o)
	case z.doubts[o] && !z.old[o]:
		z.low += o.delta
		z.counted[o] = true
		delete(z.doubts, o)
	}
	w.showReaders()
}

// showReaders widens what readers may see by what is so now.
func (w *world) showReaders() {
	for _, reader := range w.readers {
		reader.reset.include(w.resets.bounds)
	}
}

// resetKey resets the key, or repeats an earlier reset.
func (w *world) resetKey() {
	if w.noticed < w.epoch {
		return
	}
	z := &w.resets
	var c counter.Change
	repeats := len(z.calls) > 0 && w.rnd.IntN(3) == 0
	if repeats {
		c = z.calls[w.rnd.IntN(len(z.calls))]
		if made, _ := c.RequestID.Time(); w.redis.Micros()/1000-made > modelDedupe.Milliseconds()-1 {
			return
		}
	} else {
		c = counter.Change{
			Entries: []counter.Entry{{Key: resetKey}}, Reset: true,
			RequestID: counter.ParseRequestID(storetest.NewID(time.UnixMicro(w.redis.Micros()))).Derive(fmt.Sprint("reset-", z.count)),
		}
		z.count++
	}
	var r counter.Receipt
	var err error
	doubt := false
	for range 20 {
		if r, err = w.servers[w.rnd.IntN(2)].Apply(w.t.Context(), c); !errors.Is(err, counter.ErrInDoubt) {
			break
		}
		doubt = true
	}
	switch {
	case w.rollback:
	case err != nil:
		w.failf("Z: a reset was refused: %v", err)
	case repeats && r.Outcome != counter.Duplicate, !repeats && !doubt && r.Outcome != counter.Applied:
		w.failf("Z: a reset (repeated: %t) is %v", repeats, r.Outcome)
	}
	if repeats || err != nil {
		return
	}
	z.calls = append(z.calls, c)
	for o := range z.doubts {
		z.old[o] = true
	}
	clear(z.doubts)
	z.bounds = bounds{}
	w.showReaders()
}

// checkReset returns what the drained ledger must hold of the key: what it holds, if that may be.
func (w *world) checkReset(total, likes int64) int64 {
	rest := total - likes
	if !w.rollback && (rest < w.resets.low || rest > w.resets.high) {
		w.failf("Z: the ledger holds %d of %s besides likes, and %d to %d was added since the last reset",
			rest, resetKey, w.resets.low, w.resets.high)
	}
	return total
}

// setDatedLike likes or unlikes as of now, or likes as of long ago, which counts only for a pair that was never set.
func (w *world) setDatedLike() {
	if w.likes.silent.Load() || w.ahead != 0 {
		return // nobody can tell what is older, or by which clock
	}
	like := counter.DatedLike{Pair: counter.Pair{Key: w.anyKey(), Actor: w.anyActor()}, Liked: true}
	past := w.rnd.IntN(2) == 0
	if past {
		like.Micros = modelStart.AddDate(-1, 0, 0).UnixMicro()
	} else {
		w.redis.Advance(time.Millisecond) // moments of a pair may be ahead of the clock by microseconds
		like.Liked, like.Micros = w.anyLike() == counter.SetLiked, w.redis.Micros()
	}
	changed, ever := w.likes.ever[like.Pair]
	if past && ever && !changed {
		return
	}
	counts := !past || !ever
	changes := counts && w.likes.liked[like.Pair] != like.Liked
	a := w.sendLike(like.Change(), w.rnd.IntN(2))
	if w.rollback {
		return
	}
	if a.err != nil || a.Provisional || !a.doubt && a.Changed != changes {
		w.failf("L: %v was set to %t as of long ago (%t): changed %t, provisional %t, %v; it was %t", like.Pair, like.Liked, past,
			a.Changed, a.Provisional, a.err, w.likes.liked[like.Pair])
	}
	if !counts {
		return
	}
	w.likes.liked[like.Pair], w.likes.ever[like.Pair] = like.Liked, changed || changes
	if changes {
		delete(w.likes.since, like.Pair)
	}
	for _, reader := range w.readers {
		reader.see(like.Pair, like.Liked)
	}
}
