package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

var (
	errLedgerPause  = errors.New("the ledger has failed just now")
	errLedgerAnswer = errors.New("the ledger answered for another number of likes or shards")
)

// likeRead is the look-up of one of an actor's likes.
type likeRead struct {
	pair  counter.Pair
	home  int
	shard int // the pair's place
	known PendingLike
	found bool // at the pair's place, so that nothing is newer
	older PairValue
	done  bool // nothing is left to ask Redis
}

// Likes returns which of the keys an actor likes, each at a moment after the call began, in the order of keys. If
// one cannot be told, none is.
func (s *Store) Likes(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error) {
	reads := make([]likeRead, 0, len(keys))
	positions := make(map[string]int, len(keys))
	for _, key := range keys {
		if _, ok := positions[key]; ok {
			continue
		}
		positions[key] = len(reads)
		r := likeRead{pair: counter.Pair{Key: key, Actor: actor}, home: Home(key, s.cfg.Shards)}
		r.shard = r.home
		if marker := s.markers.get(key); marker != 0 {
			r.shard = marker.place(r.home, actor, s.cfg.Shards)
		}
		reads = append(reads, r)
	}
	if err := s.findLikes(ctx, reads); err != nil {
		return nil, err
	}
	if err := s.loadLikes(ctx, reads); err != nil {
		return nil, err
	}
	states := make([]counter.LikeState, len(keys))
	for i, key := range keys {
		states[i] = reads[positions[key]].state()
	}
	return states, nil
}

func (r *likeRead) state() counter.LikeState {
	if r.known.Since == 0 {
		return counter.LikeState{Liked: r.known.Liked}
	}
	return counter.LikeState{Liked: r.known.Liked, At: time.UnixMicro(r.known.Since)}
}

// findLikes asks Redis: one round, and one more for keys that turn out to be spread.
func (s *Store) findLikes(ctx context.Context, reads []likeRead) error {
	for range maxRounds {
		left := groupLikes(reads)
		if len(left.groups) == 0 {
			return nil
		}
		values, errs := s.states.lookUp(ctx, left.groups)
		if err := cmp.Or(errs...); err != nil {
			return err
		}
		for i, asked := range left.asked {
			for k, r := range asked {
				s.takeOverLike(r, left.groups[i].Shard, values[i][k])
			}
		}
	}
	return fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled)
}

// groupLikes groups what is left to ask by shard: of a pair that is away, its place and its home.
func groupLikes(reads []likeRead) pairGroups[*likeRead] {
	var g pairGroups[*likeRead]
	for i := range reads {
		r := &reads[i]
		if r.done {
			continue
		}
		r.done = true
		if r.shard != r.home {
			g.add(r.shard, r.pair, r)
		}
		g.add(r.home, r.pair, r)
	}
	return g
}

// pairGroups are questions about pairs, by shard, and for whom they are asked.
type pairGroups[T any] struct {
	groups []PairGroup
	asked  [][]T
	index  map[int]int // of each shard's group
}

func (g *pairGroups[T]) add(shard int, pair counter.Pair, asker T) {
	at, ok := g.index[shard]
	if !ok {
		if g.index == nil {
			g.index = map[int]int{}
		}
		at = len(g.groups)
		g.index[shard] = at
		g.groups, g.asked = append(g.groups, PairGroup{Shard: shard}), append(g.asked, nil)
	}
	g.groups[at].Pairs, g.asked[at] = append(g.groups[at].Pairs, pair), append(g.asked[at], asker)
}

// takeOverLike takes over what a shard knows of a pair. A home that knows of a marker sends the rest of the
// question on.
func (s *Store) takeOverLike(r *likeRead, shard int, value PairValue) {
	if shard == r.home {
		s.markers.learn(r.pair.Key, value.Marker)
		if place := value.Marker.place(r.home, r.pair.Actor, s.cfg.Shards); value.Marker != 0 && r.shard != place {
			r.shard, r.done = place, false
		}
	}
	switch {
	case shard == r.shard && value.Known:
		r.known, r.found = value.PendingLike, true
	case shard == r.home:
		r.older = value
	}
}

// loadLikes reads from the ledger, in one query, what Redis does not know.
func (s *Store) loadLikes(ctx context.Context, reads []likeRead) error {
	var missing []*likeRead
	var pairs []counter.Pair
	for i := range reads {
		if !reads[i].found {
			missing, pairs = append(missing, &reads[i]), append(pairs, reads[i].pair)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadAttempt)
	defer cancel()
	started := time.Now()
	snapshot, err := s.states.ledger.Likes(ctx, pairs)
	if err == nil && len(snapshot.States) != len(pairs) {
		err = errLedgerAnswer
	}
	s.metrics.loadLikes(started, len(pairs), err)
	if err != nil {
		return err
	}
	for i, r := range missing {
		r.known = newest(r.older, snapshot.States[i]).PendingLike
	}
	return nil
}
