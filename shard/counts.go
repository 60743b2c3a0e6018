package shard

import (
	"context"
	"fmt"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// keyRead is the read of one key: over its home, and over all shards once it is known to be spread.
type keyRead struct {
	key    string
	home   int
	spread bool
	left   []shardRead
	atHome [1]shardRead // what is left at first, if the key is not known to be spread
	sum    sum
	likes  sum
	micros int64 // of the earliest part
	err    error
}

// shardRead is a shard that is still to be read, and where it is among the lookups of the query to its lane.
type shardRead struct{ shard, position int }

// Counts reads keys afresh, each at a moment after the call began. Keys are distinct; the answers are in
// their order.
func (s *Store) Counts(ctx context.Context, keys []string) []counter.Reading {
	reads := make([]keyRead, len(keys))
	for i, key := range keys {
		r := &reads[i]
		r.key, r.home = key, Home(key, s.cfg.Shards)
		if s.markers.get(key) != 0 {
			r.spreadOver(s.cfg.Shards, -1)
		} else {
			r.atHome[0].shard = r.home
			r.left = r.atHome[:]
		}
	}
	for round := 0; ; round++ {
		asked := time.Now()
		missing, left := s.readRound(ctx, reads)
		if !left {
			break
		}
		if round == maxRounds {
			for i := range reads {
				if len(reads[i].left) > 0 {
					reads[i].fail(fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled))
				}
			}
			break
		}
		s.loadMissing(ctx, reads, missing, asked)
	}
	answers := make([]counter.Reading, len(keys))
	for i := range reads {
		r := &reads[i]
		answers[i] = counter.Reading{
			Count: counter.Count{Key: r.key, Value: r.sum.int64(), Likes: r.likes.int64(), AsOf: time.UnixMicro(r.micros)}, Err: r.err,
		}
	}
	return answers
}

// spreadOver adds all shards but one to those still to be read.
func (r *keyRead) spreadOver(shards, but int) {
	r.spread = true
	for shard := range shards {
		if shard != but {
			r.left = append(r.left, shardRead{shard: shard})
		}
	}
}

func (r *keyRead) fail(err error) { r.err, r.left = err, nil }

// readRound reads all that is left, in one script a lane. It returns the bases that are missing, and whether
// anything is left to read.
func (s *Store) readRound(ctx context.Context, reads []keyRead) (missing []baseRef, left bool) {
	queries := s.ask(reads)
	for _, q := range queries {
		if q == nil {
			continue
		}
		select {
		case <-q.done:
		case <-ctx.Done():
			err := fmt.Errorf("%w: %w", counter.ErrUnavailable, context.Cause(ctx))
			for i := range reads {
				if len(reads[i].left) > 0 {
					reads[i].fail(err)
				}
			}
			return nil, false
		}
	}
	for i := range reads {
		missing = s.takeOver(&reads[i], queries, missing)
		left = left || len(reads[i].left) > 0
	}
	return missing, left
}

// ask sends the queries of a round, one to each lane that is concerned. They are returned by lane.
func (s *Store) ask(reads []keyRead) []*query {
	queries := make([]*query, len(s.readers))
	for i := range reads {
		for k := range reads[i].left {
			l := &reads[i].left[k]
			q := queries[s.lane(l.shard)]
			if q == nil {
				q = newQuery((len(reads) + len(queries) - 1) / len(queries))
				queries[s.lane(l.shard)] = q
			}
			l.position = len(q.lookups)
			q.lookups = append(q.lookups, lookup{key: reads[i].key, shard: l.shard})
		}
	}
	for lane, q := range queries {
		if q == nil {
			continue
		}
		if err := s.readers[lane].queue.Add(q); err != nil {
			q.err = queueError(err)
			close(q.done)
		}
	}
	return queries
}

// takeOver adds what a round answered of a key and keeps what is left.
func (s *Store) takeOver(k *keyRead, queries []*query, missing []baseRef) []baseRef {
	asked := k.left
	k.left = nil
	for _, l := range asked {
		q := queries[s.lane(l.shard)]
		if q.err != nil {
			k.fail(q.err)
			return missing
		}
		value := &q.lookups[l.position]
		if l.shard == k.home {
			s.markers.learn(k.key, value.Marker)
			if value.Marker != 0 && !k.spread {
				k.spreadOver(s.cfg.Shards, k.home)
			}
		}
		if !value.Cached {
			missing = append(missing, baseRef{k.key, l.shard})
			k.left = append(k.left, l)
			continue
		}
		k.sum.add(value.Value)
		k.likes.add(value.Likes)
		if k.micros == 0 || value.micros < k.micros {
			k.micros = value.micros
		}
	}
	return missing
}

// loadMissing loads bases that were missing in a round that began at the given time, and fails the reads whose
// base cannot be loaded.
func (s *Store) loadMissing(ctx context.Context, reads []keyRead, missing []baseRef, asked time.Time) {
	failed := make(map[string]error)
	loads := make([]*baseLoad, 0, len(missing))
	for _, ref := range missing {
		load, err := s.loader.start(ref, asked)
		if err != nil {
			failed[ref.key] = err
			continue
		}
		loads = append(loads, load)
	}
	for _, load := range loads {
		select {
		case <-load.done:
			if load.err != nil {
				failed[load.ref.key] = load.err
			}
		case <-ctx.Done():
			failed[load.ref.key] = fmt.Errorf("%w: %w", counter.ErrUnavailable, context.Cause(ctx))
		}
	}
	for i := range reads {
		if err := failed[reads[i].key]; err != nil {
			reads[i].fail(err)
		}
	}
}
