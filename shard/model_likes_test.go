package shard_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

// likes is what a world knows of likes. A like is sent until it is answered, so that it is known at any time which
// pairs are liked. The invariants, while Redis does not go back in time:
//
//   - a like that is not provisional says rightly whether it changed anything;
//   - a repeated request id gets the answer of its first call, and changes nothing;
//   - a read shows states that the pairs had while it went on; a repeat does not move the moment of a like;
//   - so do counts, but for keys of which a provisional answer is pending;
//   - the drained ledger holds the last state of each pair.
//
// However Redis goes back in time, the likes of a key are the liked pairs in the ledger, and fresh reads of both
// equal the ledger after the drain.
type likes struct {
	liked map[counter.Pair]bool
	// ever has the pairs that were ever set, and whether that changed any: an unlike of what was never liked may be forgotten.
	ever map[counter.Pair]bool
	// since has the moments that were read since the pairs were last changed.
	since map[counter.Pair]time.Time
	// spoilt are keys whose pending count rests on a provisional answer.
	spoilt map[string]bool
	calls  []*likeCall
	// silent: servers cannot ask the ledger what likes are. Only in some worlds it ever is (silences).
	silent   atomic.Bool
	silences bool
	// busy: much will happen when a server asks the ledger next, and nested is then a like that was set by the other
	// server than sender.
	busy   bool
	sender int
	nested *likeAnswer
}

// likeCall is a call with a request id that was answered.
type likeCall struct {
	change  counter.Change
	micros  int64 // when it was first sent, by the Redis clock
	changed bool
}

func newLikes(rnd *rand.Rand) likes {
	return likes{
		liked: map[counter.Pair]bool{}, ever: map[counter.Pair]bool{}, since: map[counter.Pair]time.Time{}, spoilt: map[string]bool{}, silences: rnd.IntN(3) == 0,
	}
}

// serverLedger is the ledger of a server. At times it cannot be asked what likes are, or much happens before its answer
// arrives.
type serverLedger struct {
	shard.Ledger
	w *world
}

func (l *serverLedger) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	if l.w.likes.silent.Load() {
		return shard.LedgerLikes{}, errFault
	}
	snapshot, err := l.Ledger.Likes(ctx, pairs)
	l.w.meanwhile(pairs[0])
	return snapshot, err
}

func (l *serverLedger) Likers(ctx context.Context, key string, most int, visit func([]byte)) ([]int64, error) {
	if l.w.likes.silent.Load() {
		return nil, errFault
	}
	return l.Ledger.Likers(ctx, key, most, visit)
}

func (w *world) anyActor() string { return []string{"al", "bo"}[w.rnd.IntN(2)] }

// silence begins or ends a time in which the ledger is silent. What likes are is unknown then, and also by when they
// were set: the Redis clock must not be behind.
func (w *world) silence() {
	switch {
	case w.likes.silent.Load():
		w.likes.silent.Store(false)
		for i := range w.servers {
			w.restartServer(i) // by the true clock, they would not ask for a second
		}
	case w.likes.silences && w.ahead == 0:
		w.likes.silent.Store(true)
	}
}

// setLike likes or unlikes, be it a change or a repeat.
func (w *world) setLike() {
	c := counter.Change{Entries: []counter.Entry{{Key: w.anyKey()}}, Actor: w.anyActor(), Like: w.anyLike()}
	now := w.redis.Micros()
	switch w.rnd.IntN(4) {
	case 0:
	case 1:
		c.RequestID = counter.ParseRequestID(fmt.Sprint("opaque-like-", len(w.likes.calls)))
	default:
		c.RequestID = counter.ParseRequestID(storetest.NewID(time.UnixMicro(now)))
	}
	w.likes.busy = w.rnd.IntN(2) == 0
	w.likes.sender = w.rnd.IntN(2)
	a := w.sendLike(c, w.likes.sender)
	w.likes.busy = false
	if w.likes.nested != nil {
		w.answered(*w.likes.nested)
		w.likes.nested = nil
	}
	w.answered(a)
	if a.err == nil && !c.RequestID.IsZero() {
		w.likes.calls = append(w.likes.calls, &likeCall{change: c, micros: now, changed: a.Changed})
	}
}

func (w *world) anyLike() counter.LikeAction {
	return []counter.LikeAction{counter.SetLiked, counter.SetUnliked}[w.rnd.IntN(2)]
}

// answered judges the answer to a like that was sent for the first time, and keeps what it set.
func (w *world) answered(a likeAnswer) {
	if w.rollback {
		return
	}
	pair, wanted := a.change.Pair(), a.change.Like == counter.SetLiked
	changes := w.likes.liked[pair] != wanted
	switch {
	case a.err != nil:
		w.failf("L: a like was refused: %v", a.err)
	case !a.doubt && a.Outcome != counter.Applied:
		w.failf("L: a like that was never sent before is %v", a.Outcome)
	case a.Provisional && !w.likes.silences:
		w.failf("L: an answer is provisional, and the ledger has never been silent")
	case !a.doubt && !a.Provisional && a.Changed != changes:
		w.failf("L: the like of %v is %t and was set to %t: changed is %t", pair, w.likes.liked[pair], wanted, a.Changed)
	}
	w.likes.liked[pair], w.likes.ever[pair] = wanted, w.likes.ever[pair] || changes
	if a.Provisional {
		w.likes.spoilt[pair.Key] = true
	}
	if changes || a.Provisional {
		delete(w.likes.since, pair)
	}
	for _, reader := range w.readers {
		reader.see(pair, wanted)
		reader.spoilt = reader.spoilt || w.likes.spoilt[reader.key]
	}
}

// meanwhile lets the pair be set by another server, drained and forgotten, while a server that sets it waits for the
// ledger. The world waits for that server, so that this runs alone.
func (w *world) meanwhile(pair counter.Pair) {
	if !w.likes.busy {
		return
	}
	w.likes.busy = false
	c := counter.Change{Entries: []counter.Entry{{Key: pair.Key}}, Actor: pair.Actor, Like: w.anyLike()}
	a := w.sendLike(c, 1-w.likes.sender)
	w.ahead = max(0, w.ahead-modelWindow)
	w.redis.Advance(modelWindow)
	a.err = errors.Join(a.err, newModelWorker(w.redis.Scripts(), w.ledger).Round(w.t.Context(), 0))
	w.likes.nested = &a
	for ago := range int64(2) {
		w.redis.EvictLikes(w.redis.Micros()/(hourMS*1000) - ago)
	}
}

// likeAnswer is the answer to a like. Doubt says that an earlier try may have been the one that set it.
type likeAnswer struct {
	change counter.Change
	counter.Receipt
	err   error
	doubt bool
}

// sendLike sends a like to a server until it is answered.
func (w *world) sendLike(c counter.Change, server int) likeAnswer {
	a := likeAnswer{change: c}
	for range 20 {
		a.Receipt, a.err = w.servers[server].Apply(w.t.Context(), c)
		if !errors.Is(a.err, counter.ErrInDoubt) {
			return a
		}
		a.doubt = true
	}
	return a
}

// retryLike sends a like again that was answered, or uses its request id for another one.
func (w *world) retryLike() {
	if len(w.likes.calls) == 0 || w.noticed < w.epoch {
		return
	}
	call := w.likes.calls[w.rnd.IntN(len(w.likes.calls))]
	c := call.change
	made, timed := c.RequestID.Time()
	age := w.redis.Micros()/1000 - made
	if !timed && w.redis.Micros()-call.micros > modelDedupe.Microseconds() || timed && age > 2*modelDedupe.Milliseconds() {
		return // such an id may be forgotten by now
	}
	reused := w.rnd.IntN(5) == 0
	if reused {
		c.Like = counter.SetLiked + counter.SetUnliked - c.Like
	}
	a := w.sendLike(c, w.rnd.IntN(2))
	dedupe := modelDedupe.Milliseconds()
	expired := errors.Is(a.err, counter.ErrRequestIDExpired)
	switch {
	case w.rollback: // it may have been lost
	case timed && (age > dedupe && expired || age >= dedupe-1 && age <= dedupe+1):
	case reused && errors.Is(a.err, counter.ErrRequestIDReused):
	case reused || a.err != nil || a.Outcome != counter.Duplicate || a.Changed != call.changed:
		w.failf("L: the repeat of a like (reused id: %t) is %v, changed %t, %v; changed was %t",
			reused, a.Outcome, a.Changed, a.err, call.changed)
	}
}

// look reads a count and an actor's likes between two steps of the others.
func (w *world) look() {
	if w.rollback {
		return
	}
	key, server := w.anyKey(), w.servers[w.rnd.IntN(2)]
	seen := w.seeLikes(key, w.anyActor())
	got := server.Counts(w.t.Context(), []string{key})[0]
	want, _ := seen.bounds()
	rest, may := got.Value-got.Likes, bounds{w.acked[key], w.issued[key]}
	if key == resetKey {
		may = w.resets.bounds
	}
	if got.Err == nil && !seen.spoilt && (got.Likes != want || rest < may.low || rest > may.high) {
		w.failf("L: %s is %d with %d likes; %d to %d was added, and it has %d likes", key, got.Value, got.Likes, may.low, may.high, want)
	}
	seen.states, seen.err = server.Likes(w.t.Context(), seen.who, modelKeys)
	w.judgeStates(&seen)
	for i, state := range seen.states {
		pair := counter.Pair{Key: modelKeys[i], Actor: seen.who}
		if since, ok := w.likes.since[pair]; ok && !since.Equal(state.At) {
			w.failf("L: %v has been so since %s, and now since %s", pair, since, state.At)
		}
		w.likes.since[pair] = state.At
	}
}

// likesSeen is what a reader can see of likes.
type likesSeen struct {
	who string
	// was has the states of pairs while the read goes on.
	was    map[counter.Pair]map[bool]bool
	key    string
	spoilt bool
	// What was read of the actor's likes.
	states []counter.LikeState
	err    error
}

// seeLikes begins a read of a key's count or of an actor's likes.
func (w *world) seeLikes(key, who string) likesSeen {
	if len(w.redis.Windows()) == 0 {
		clear(w.likes.spoilt)
	}
	seen := likesSeen{who: who, was: map[counter.Pair]map[bool]bool{}, key: key, spoilt: w.likes.spoilt[key]}
	for _, key := range modelKeys {
		for _, who := range []string{"al", "bo"} {
			pair := counter.Pair{Key: key, Actor: who}
			seen.was[pair] = map[bool]bool{w.likes.liked[pair]: true}
		}
	}
	return seen
}

func (s *likesSeen) see(pair counter.Pair, liked bool) { s.was[pair][liked] = true }

// bounds are the fewest and the most likes that the key had.
func (s *likesSeen) bounds() (low, high int64) {
	for pair, was := range s.was {
		if pair.Key != s.key || !was[true] {
			continue
		}
		high++
		if !was[false] {
			low++
		}
	}
	return low, high
}

func (w *world) judgeStates(s *likesSeen) {
	if s.err != nil {
		return
	}
	for i, state := range s.states {
		pair := counter.Pair{Key: modelKeys[i], Actor: s.who}
		if !s.was[pair][state.Liked] {
			w.failf("L: the like of %v was read as %t, which it was not", pair, state.Liked)
		}
	}
}

// checkLikes checks the drained ledger, and returns how many likes each key has.
func (w *world) checkLikes(store *shard.Store) map[string]int64 {
	pairs, likes := w.ledger.LikedPairs(), map[string]int64{}
	for pair := range pairs {
		likes[pair.Key]++
	}
	totals := w.ledger.LikeTotals()
	for _, key := range modelKeys {
		if totals[key] != likes[key] {
			w.failf("L: the ledger holds %d likes of %s, and %d pairs", totals[key], key, likes[key])
		}
	}
	for _, who := range []string{"al", "bo"} {
		states, err := store.Likes(w.t.Context(), who, modelKeys)
		if err != nil {
			w.failf("L: %v", err)
		}
		for i, key := range modelKeys {
			pair := counter.Pair{Key: key, Actor: who}
			if !w.rollback && pairs[pair] != w.likes.liked[pair] {
				w.failf("L: %v was last set to %t, and is %t in the ledger", pair, w.likes.liked[pair], pairs[pair])
			}
			if states[i].Liked != pairs[pair] {
				w.failf("L: a fresh read of %v is %t; it is %t in the ledger", pair, states[i].Liked, pairs[pair])
			}
		}
	}
	return likes
}
