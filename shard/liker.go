package shard

import (
	"context"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// applyLike sets a like (rule 10). The script knows the states of lately changed pairs; others are loaded, and the
// like is sent again with what was found.
func (s *Store) applyLike(ctx context.Context, c *counter.Change) (counter.Receipt, error) {
	fingerprint := fingerprintOf(c)
	var known KnownLike
	at := -1 // the shard that known is for
	for range maxRounds {
		p := s.router.single(c, c.Entries, fingerprint)
		if receipt, found, err := s.likedAtHome(ctx, c, &p); found || err != nil {
			return receipt, err
		}
		if p.shard != at {
			known, at = KnownLike{}, p.shard
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
			return counter.Receipt{
				Outcome: done.outcome, AsOf: time.UnixMicro(j.micros + 1), Changed: done.changed,
				Provisional: done.outcome == counter.Applied && done.changed && known.Source == LikeSupposed,
			}, nil
		case j.reroute:
			continue
		}
		var err error
		if known, err = s.states.load(ctx, c.Pair(), p.shard); err != nil {
			return counter.Receipt{}, err
		}
	}
	return counter.Receipt{}, fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled)
}

// likedAtHome answers a like that was done at its key's home before the key was spread. It looks for ids that can
// have been used then: any other id has but one place (rule 9).
func (s *Store) likedAtHome(ctx context.Context, c *counter.Change, p *part) (counter.Receipt, bool, error) {
	if p.spread == 0 || !p.id.set {
		return counter.Receipt{}, false, nil
	}
	now := s.clock.milliseconds()
	made, timed := c.RequestID.Time()
	if timed && made > p.spread+afterMarker || !timed && now > p.spread+(s.cfg.Dedupe+2*counter.MaxEarly).Milliseconds() {
		return counter.Receipt{}, false, nil
	}
	changed, known, err := s.askHome(ctx, c, p, now)
	return counter.Receipt{Outcome: counter.Duplicate, AsOf: time.UnixMilli(now + 1), Changed: changed}, known, err
}
