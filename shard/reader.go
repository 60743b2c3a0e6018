package shard

import (
	"context"
	"time"

	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Limits of a read lane.
const (
	readAttempt = time.Second
	// readAttempts is how often a read is tried: a connection that Redis closed is noticed by the first
	// command that uses it.
	readAttempts = 2
	// maxQueueKeys bounds what waits for the next reads.
	maxQueueKeys = 262_144
)

// query is the part of a read that goes to one lane.
type query struct {
	groups  []KeyGroup
	replies []ReadReply
	err     error
	done    chan struct{}
}

func (q *query) weight() int {
	n := 1
	for i := range q.groups {
		n += len(q.groups[i].Keys)
	}
	return n
}

// reader is a read lane. Queries that arrive while a read is under way share the next one, so every answer
// is of a moment after the query.
type reader struct {
	scripts Scripts
	clock   *clock
	metrics *Metrics
	queue   *groupcommit.Queue[*query]
}

func newReader(s *Store) *reader {
	r := &reader{scripts: s.scripts, clock: s.clock, metrics: s.metrics}
	r.queue = groupcommit.New(groupcommit.Config[*query]{
		MaxQueue: maxQueueKeys, MaxBatch: maxKeysPerRead, Weigh: (*query).weight,
	}, r.run)
	return r
}

func (r *reader) run(ctx context.Context, queries []*query) {
	groups, places := merge(queries)
	replies, err := r.read(ctx, groups)
	for _, q := range queries {
		if q.err = err; err == nil {
			q.replies = make([]ReadReply, len(q.groups))
			for i, g := range q.groups {
				at := places[g.Shard]
				reply := &replies[at.group]
				q.replies[i] = ReadReply{Micros: reply.Micros, Values: make([]KeyValue, len(g.Keys))}
				for k, key := range g.Keys {
					q.replies[i].Values[k] = reply.Values[at.keys[key]]
				}
			}
		}
		close(q.done)
	}
}

// groupPlace is where a shard's keys stand in a merged read.
type groupPlace struct {
	group int
	keys  map[string]int
}

// merge joins the groups of all queries, each shard and key once.
func merge(queries []*query) ([]KeyGroup, map[int]groupPlace) {
	var groups []KeyGroup
	places := make(map[int]groupPlace)
	for _, q := range queries {
		for _, g := range q.groups {
			at, ok := places[g.Shard]
			if !ok {
				at = groupPlace{len(groups), make(map[string]int, len(g.Keys))}
				places[g.Shard] = at
				groups = append(groups, KeyGroup{Shard: g.Shard})
			}
			merged := &groups[at.group]
			for _, key := range g.Keys {
				if _, ok := at.keys[key]; !ok {
					at.keys[key] = len(merged.Keys)
					merged.Keys = append(merged.Keys, key)
				}
			}
		}
	}
	return groups, places
}

func (r *reader) read(ctx context.Context, groups []KeyGroup) ([]ReadReply, error) {
	replies, err := tryRead(ctx, r.metrics, "read", func(ctx context.Context) ([]ReadReply, error) {
		return r.scripts.Read(ctx, groups)
	})
	if err == nil {
		r.clock.sync(replies[0].Micros)
	}
	return replies, err
}

// tryRead runs a script that only reads, a few times if its answer is lost.
func tryRead[T any](ctx context.Context, m *Metrics, name string, run func(context.Context) (T, error)) (T, error) {
	for tries := 1; ; tries++ {
		attempt, cancel := context.WithTimeout(ctx, readAttempt)
		sent := time.Now()
		answer, err := run(attempt)
		cancel()
		m.script(name, sent, err)
		if err == nil {
			return answer, nil
		}
		if tries == readAttempts || classify(err) != lostAnswer {
			return answer, readError(err)
		}
	}
}
