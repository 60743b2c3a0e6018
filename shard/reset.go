package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// errNotCached refuses a reset on a shard where the base of the key is not cached.
var errNotCached = errors.New("the base of the key is not cached")

// applyReset takes back the increments of a key, which has a request id: on each shard what that holds, in one step with
// the id. The home of the key comes last, so that the id's claim there says that all is done; it refuses whoever does not
// know that the key is spread.
func (s *Store) applyReset(ctx context.Context, c *counter.Change) (counter.Receipt, error) {
	fingerprint, key := fingerprintOf(c, &s.cfg.FingerprintKey), c.Entries[0].Key
	home := Home(key, s.cfg.Shards)
	settled := make([]bool, s.cfg.Shards)
	var total tally
	for range maxRounds {
		// A fresh read learns of the marker, and has the bases loaded.
		if read := s.Counts(ctx, []string{key})[0]; read.Err != nil {
			total.fail(read.Err)
			return counter.Receipt{}, total.error()
		}
		marker, missing := s.markers.get(key), false
		for shard := range s.cfg.Shards {
			if marker == 0 || shard == home || settled[shard] {
				continue
			}
			p := part{shard: shard, entries: c.Entries, spread: marker, id: idClaim(c, key, fingerprint)}
			done, err := s.resetShard(ctx, c, p, &total)
			if err != nil {
				return counter.Receipt{}, err
			}
			settled[shard], missing = done, missing || !done
		}
		if missing {
			continue
		}
		p := part{shard: home, entries: c.Entries, id: idClaim(c, "", fingerprint)}
		p.declare(route{shard: home, home: home, marker: marker})
		done, err := s.resetShard(ctx, c, p, &total)
		if err != nil {
			return counter.Receipt{}, err
		}
		if done {
			return total.receipt(), nil
		}
	}
	total.fail(fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled))
	return counter.Receipt{}, total.error()
}

// resetShard takes back what one shard holds. It is not done if the base has gone, or if the marker was another one.
func (s *Store) resetShard(ctx context.Context, c *counter.Change, p part, total *tally) (done bool, err error) {
	j := s.pool.get(c)
	j.parts[0], j.alone = p, true
	if err := s.submit([]*job{j}); err != nil {
		total.fail(err)
		return false, total.error()
	}
	if err := wait(ctx, j); err != nil {
		total.fail(err)
		return false, total.error()
	}
	defer s.pool.put(j)
	if errors.Is(j.err, errNotCached) {
		return false, nil
	}
	left := total.add(j)
	if total.err != nil {
		return false, total.error()
	}
	return len(left) == 0, nil
}

// Repeated reports whether a change of a single entry, with a request id, was counted before. It is counter.ErrRequestIDReused
// if the id was used for something else, and another of the counter package's errors if the id is too old or too early.
func (s *Store) Repeated(ctx context.Context, c counter.Change) (bool, error) {
	home := Home(c.Entries[0].Key, s.cfg.Shards)
	pending, err := s.pending(ctx, home)
	if err != nil {
		return false, err
	}
	now := pending.Micros / 1000
	if err := c.RequestID.CheckAge(now, s.cfg.Dedupe); err != nil {
		return false, err
	}
	// A reset ends at home. Any other change is where its id and what is known of the key's marker have it.
	places := map[int]counter.RequestID{home: c.RequestID}
	if !c.Reset {
		for shard := range s.cfg.Shards {
			if shard != home {
				places[shard] = c.RequestID.Away(c.Entries[0].Key)
			}
		}
	}
	fingerprint := fingerprintOf(&c, &s.cfg.FingerprintKey)
	for shard, id := range places {
		claims, err := tryRead(ctx, s.metrics, "claimed", func(ctx context.Context) ([]ClaimValue, error) {
			return s.scripts.Claimed(ctx, shard, []counter.RequestID{id}, now)
		})
		switch {
		case err != nil:
			return false, err
		case claims[0].Known && claims[0].Value != fingerprint:
			return false, counter.ErrRequestIDReused
		case claims[0].Known:
			return true, nil
		}
	}
	return false, nil
}

func (s *Store) pending(ctx context.Context, shard int) (PendingWindows, error) {
	return tryRead(ctx, s.metrics, "pending", func(ctx context.Context) (PendingWindows, error) {
		return s.scripts.Pending(ctx, shard)
	})
}

// Mark takes a mark.
func (s *Store) Mark(ctx context.Context) (counter.Mark, error) {
	mark := counter.Mark{Windows: make([]int64, s.cfg.Shards)}
	for shard := range s.cfg.Shards {
		pending, err := s.pending(ctx, shard)
		if err != nil {
			return counter.Mark{}, err
		}
		if now := time.UnixMicro(pending.Micros); now.After(mark.Now) {
			mark.Now = now
		}
		if pending.Likes {
			mark.Windows[shard] = pending.Newest
		}
	}
	return mark, nil
}

// Settled reports whether the ledger has all likes from before the mark: no window is left that may have one.
func (s *Store) Settled(ctx context.Context, mark counter.Mark) (bool, error) {
	for shard, last := range mark.Windows {
		if last == 0 {
			continue
		}
		pending, err := s.pending(ctx, shard)
		if err != nil || pending.Oldest != 0 && pending.Oldest <= last {
			return false, err
		}
	}
	return true, nil
}
