package shard

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// applyLike sets a like (rule 10). What it was is loaded first, for the script knows only lately changed pairs, which
// goes before what was loaded. Of a pair that this server has set lately the script is asked first.
func (s *Store) applyLike(ctx context.Context, c *counter.Change) (counter.Receipt, error) {
	fingerprint := fingerprintOf(c)
	var known KnownLike
	at := -1 // the shard that known is for
	for range maxRounds {
		p := s.router.single(c, c.Entries, fingerprint)
		if p.shard != at {
			before, err := s.beforeLike(ctx, c, &p)
			if err != nil || before.claimed.Known {
				return s.likedAtHome(c, &p, before, err)
			}
			known, at = before.known, p.shard
		}
		p.known = known
		j := newJob(c, p)
		if err := s.submit([]*job{j}); err != nil {
			return counter.Receipt{}, err
		}
		if err := wait(ctx, j); err != nil {
			return counter.Receipt{}, err
		}
		switch done := &j.parts[0]; {
		case j.err != nil:
			return counter.Receipt{}, j.err
		case done.outcome != 0:
			s.lately.add(c.Pair())
			return counter.Receipt{
				Outcome: done.outcome, AsOf: time.UnixMicro(j.micros + 1), Changed: done.changed,
				Provisional: done.outcome == counter.Applied && done.changed && known.Source == LikeSupposed,
			}, nil
		case j.reroute:
			continue
		}
		load := &stateLoad{pair: c.Pair(), shard: p.shard}
		if err := s.states.load(ctx, load); err != nil {
			return counter.Receipt{}, err
		}
		known = load.known
	}
	return counter.Receipt{}, fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled)
}

// beforeLike finds out what must or should be known before a like is sent. The home of a key that was spread is asked
// for ids that can have been used there before: any other id has but one place (rule 9). It refuses the actor from then
// on, so its answer stands.
func (s *Store) beforeLike(ctx context.Context, c *counter.Change, p *part) (*stateLoad, error) {
	load := &stateLoad{pair: c.Pair(), shard: p.shard, first: true}
	if p.spread != 0 && p.id.set {
		load.now = s.clock.milliseconds()
		made, timed := c.RequestID.Time()
		late := load.now > p.spread+(s.cfg.Dedupe+2*counter.MaxEarly).Milliseconds()
		if timed && made <= p.spread+afterMarker || !timed && !late {
			load.id = c.RequestID
		}
	}
	if load.id.IsZero() && s.lately.has(load.pair) {
		return load, nil
	}
	err := s.states.load(ctx, load)
	return load, err
}

// likedAtHome answers a like that was done at its key's home before the key was spread.
func (s *Store) likedAtHome(c *counter.Change, p *part, before *stateLoad, err error) (counter.Receipt, error) {
	if err != nil {
		return counter.Receipt{}, err
	}
	changed, same := p.id.repeated(before.claimed.Value, c.Like)
	if !same {
		return counter.Receipt{}, counter.ErrRequestIDReused
	}
	return counter.Receipt{Outcome: counter.Duplicate, AsOf: time.UnixMilli(before.now + 1), Changed: changed}, nil
}

// latelySet is a memory of pairs that this server has set, of which Redis is likely to know the state. It is a hint: a
// pair may be forgotten, or taken for another one.
type latelySet struct {
	seed   maphash.Seed
	hashes [latelySize]atomic.Uint64 // each where it says
}

// latelySize is how many pairs are remembered at most: half a megabyte.
const latelySize = 1 << 16

func newLatelySet() *latelySet { return &latelySet{seed: maphash.MakeSeed()} }

func (l *latelySet) add(pair counter.Pair) {
	h := maphash.Comparable(l.seed, pair)
	l.hashes[h%latelySize].Store(h)
}

func (l *latelySet) has(pair counter.Pair) bool {
	h := maphash.Comparable(l.seed, pair)
	return l.hashes[h%latelySize].Load() == h
}
