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
	fingerprint := fingerprintOf(c, &s.cfg.FingerprintKey)
	at := -1 // the shard that the script was asked on
	for range maxRounds {
		j := s.pool.get(c)
		p := &j.parts[0]
		s.router.single(p, c, c.Entries, fingerprint)
		first := p.shard != at
		at = p.shard
		if err := s.send(j, first); err != nil {
			return counter.Receipt{}, err
		}
		if err := wait(ctx, j); err != nil {
			return counter.Receipt{}, err
		}
		receipt, err, rerouted := j.likeReceipt(), j.err, j.reroute
		s.pool.put(j)
		switch {
		case err != nil:
			return counter.Receipt{}, err
		case receipt.Outcome != 0:
			s.lately.add(c.Pair())
			return receipt, nil
		case rerouted:
			at = -1
		}
	}
	return counter.Receipt{}, fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled)
}

// likeReceipt is that of a like. It has no outcome if the like is unsettled.
func (j *job) likeReceipt() counter.Receipt {
	p := &j.parts[0]
	return counter.Receipt{
		Outcome: p.outcome, AsOf: time.UnixMicro(j.micros + 1), Changed: p.changed,
		Provisional: p.outcome == counter.Applied && p.provisional(),
		Count:       j.count, Batch: j.batch,
	}
}

// provisional reports whether a like was decided without knowing what the ledger has of it. One that was supposed and
// changed nothing was known to the script after all.
func (p *part) provisional() bool {
	return p.known.Source == LikeSupposed && p.changed || p.known.Source == LikeLoaded && p.known.Watermark == noSnapshot
}

// send sends a like by way of the state loader, or to its lane if that has nothing to find out.
func (s *Store) send(j *job, first bool) error {
	c, p := &j.change, &j.parts[0]
	asksID := first && s.mayBeAtHome(c, p)
	if first && !asksID && s.lately.has(c.Pair()) {
		return s.submit([]*job{j})
	}
	if err := s.states.add(j, first, asksID); err != nil {
		return queueError(err)
	}
	return nil
}

// mayBeAtHome reports whether the id of a like can have been used at its key's home before that was spread: any other id
// has but one place (rule 9). The home refuses the actor from then on, so that what it says of the id stands.
func (s *Store) mayBeAtHome(c *counter.Change, p *part) bool {
	if p.spread == 0 || !p.id.set {
		return false
	}
	if made, timed := c.RequestID.Time(); timed {
		return made <= p.spread.Time()+afterMarker
	}
	return s.clock.milliseconds() <= p.spread.Time()+(s.cfg.Dedupe+2*counter.MaxEarly).Milliseconds()
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
