package shard

import (
	"context"
	"fmt"
	"sync"
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
	// Of the last round. On a cluster its parts are of several moments, and micros is the earliest.
	sum    sum
	likes  sum
	micros int64
	err    error
}

// shardRead is a shard that is still to be read, and where it is among the lookups of the query to its lane.
type shardRead struct{ shard, position int }

// countsCall is a call of Counts.
type countsCall struct {
	reads []keyRead
	// queries are by lane: those of the round under way, and nil or empty where it asks nothing.
	queries []*query
	one     [1]keyRead // what most calls read
}

// countsPool has calls that are used again, as most of what a read costs in memory is in them.
type countsPool struct{ pool sync.Pool }

// maxKeptReads is how many keys a call may read to be used again.
const maxKeptReads = 16

func (p *countsPool) get(keys, lanes int) *countsCall {
	c, ok := p.pool.Get().(*countsCall)
	if !ok {
		c = &countsCall{queries: make([]*query, lanes)}
	}
	c.reads = c.one[:]
	if keys != len(c.one) {
		c.reads = make([]keyRead, keys)
	}
	return c
}

// put takes back a call whose results were read. No lane may have a query of it.
func (p *countsPool) put(c *countsCall) {
	if len(c.reads) > maxKeptReads {
		return
	}
	c.reads, c.one = nil, [1]keyRead{}
	p.pool.Put(c)
}

// Counts reads keys afresh, each at a moment after the call began. Keys are distinct; the answers are in
// their order.
func (s *Store) Counts(ctx context.Context, keys []string) []counter.Reading {
	call := s.counts.get(len(keys), len(s.readers))
	reads := call.reads
	for i, key := range keys {
		s.beginRead(&reads[i], key)
	}
	var gone bool
	for round := 0; ; round++ {
		asked := time.Now()
		if gone = !s.readRound(ctx, call); gone {
			break
		}
		missing, left := s.takeOver(call)
		if !left {
			break
		}
		if round == maxRounds {
			failLeft(reads, fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled))
			break
		}
		s.loadMissing(ctx, reads, missing, asked)
	}
	answers := make([]counter.Reading, len(keys))
	for i := range reads {
		answers[i] = counter.Reading{Count: reads[i].count(), Err: reads[i].err}
	}
	if !gone {
		s.counts.put(call)
	}
	return answers
}

// beginRead sets what is to be read of a key.
func (s *Store) beginRead(r *keyRead, key string) {
	r.key, r.home = key, Home(key, s.cfg.Shards)
	if s.markers.get(key) != 0 {
		r.spreadOver(s.cfg.Shards)
		return
	}
	r.atHome[0].shard = r.home
	r.left = r.atHome[:]
}

func (r *keyRead) count() counter.Count {
	return counter.Count{Key: r.key, Value: r.sum.int64(), Likes: r.likes.int64(), AsOf: time.UnixMicro(r.micros)}
}

// spreadOver has all shards read.
func (r *keyRead) spreadOver(shards int) {
	r.spread, r.left = true, make([]shardRead, shards)
	for shard := range r.left {
		r.left[shard].shard = shard
	}
}

func (r *keyRead) fail(err error) { r.err, r.left = err, nil }

// failLeft fails what is left to read.
func failLeft(reads []keyRead, err error) {
	for i := range reads {
		if len(reads[i].left) > 0 {
			reads[i].fail(err)
		}
	}
}

// readRound reads all that is left, in one script a lane. It returns false, and has failed what is left, if the caller was gone
// before; then lanes may still have queries.
func (s *Store) readRound(ctx context.Context, c *countsCall) bool {
	s.ask(c)
	for _, q := range c.queries {
		if q == nil || len(q.lookups) == 0 {
			continue
		}
		if left := q.done.Wait(ctx); left != nil {
			failLeft(c.reads, fmt.Errorf("%w: %w", counter.ErrUnavailable, left))
			return false
		}
	}
	return true
}

// ask sends the queries of a round, one to each lane that is concerned.
func (s *Store) ask(c *countsCall) {
	s.fillQueries(c)
	for lane, q := range c.queries {
		if q == nil || len(q.lookups) == 0 {
			continue
		}
		if err := s.readers[lane].queue.Add(q); err != nil {
			q.finish(queueError(err))
		}
	}
}

// fillQueries puts what is left to read into the queries of the lanes.
func (s *Store) fillQueries(c *countsCall) {
	for i := range c.reads {
		for k := range c.reads[i].left {
			l := &c.reads[i].left[k]
			q := c.queries[s.lane(l.shard)]
			if q == nil {
				q = newQuery((len(c.reads) + len(c.queries) - 1) / len(c.queries))
				c.queries[s.lane(l.shard)] = q
			}
			l.position = len(q.lookups)
			q.lookups = append(q.lookups, lookup{key: c.reads[i].key, shard: l.shard, away: l.shard != c.reads[i].home})
		}
	}
}

// takeOver adds what a round answered and keeps what is left. It returns the bases that are missing, and whether anything is
// left to read.
func (s *Store) takeOver(c *countsCall) (missing []baseRef, left bool) {
	for i := range c.reads {
		if k := &c.reads[i]; len(k.left) > 0 {
			missing = s.takeOverKey(k, c.queries, missing)
			left = left || len(k.left) > 0
		}
	}
	for _, q := range c.queries {
		if q != nil {
			q.reset()
		}
	}
	return missing, left
}

// takeOverKey adds up what a round answered of a key. If a part is missing, all are left to read: with parts of another round the
// sum would be of several moments, and true at none.
func (s *Store) takeOverKey(k *keyRead, queries []*query, missing []baseRef) []baseRef {
	asked, before := k.left, len(missing)
	k.left, k.sum, k.likes, k.micros = nil, sum{}, sum{}, 0
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
				k.spreadOver(s.cfg.Shards)
			}
		}
		if !value.Cached {
			missing = append(missing, baseRef{k.key, l.shard})
			continue
		}
		k.sum.add(value.Value)
		k.likes.add(value.Likes)
		if k.micros == 0 || value.micros < k.micros {
			k.micros = value.micros
		}
	}
	if len(missing) > before && k.left == nil {
		k.left = asked
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
