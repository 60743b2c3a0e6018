package shard

import (
	"context"
	"time"

	"github.com/plusone-dev/plusone/internal/deadline"
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
	// maxKeptPlaces is how many keys of a shard a reader keeps the memory for from one read to the next.
	maxKeptPlaces = 256
	// A larger read costs less for each key, in Redis and here. So a server that reads more than 4,000 keys a second afresh lets
	// 64 of them gather. A spread key weighs as many as it has shards.
	gatherKeys = 64
)

// query is the part of a read that goes to one lane.
type query struct {
	lookups []lookup
	err     error
	done    *deadline.Signal // sent when err or the answers of all lookups are set
	one     [1]lookup        // what most queries have
}

// lookup is a key to read on a shard, and the answer.
type lookup struct {
	key   string
	shard int
	away  bool // the shard is not the key's home
	// group and index are where the key is in the read that all queries of a batch share.
	group, index int

	KeyValue
	micros int64 // when the script ran
}

func newQuery(lookups int) *query {
	q := &query{done: deadline.NewSignal()}
	q.lookups = q.one[:0]
	if lookups > 1 {
		q.lookups = make([]lookup, 0, lookups)
	}
	return q
}

// finish is called once for each time that the query was asked.
func (q *query) finish(err error) {
	q.err = err
	q.done.Send()
}

// reset empties a query whose answers were read.
func (q *query) reset() {
	clear(q.lookups)
	q.lookups, q.err = q.lookups[:0], nil
	q.done.Reset()
}

func (q *query) weight() int { return 1 + len(q.lookups) }

// reader is a read lane. Queries that arrive while a read is under way share the next one, so every answer
// is of a moment after the query.
type reader struct {
	scripts Scripts
	clock   *clock
	metrics *Metrics
	queue   *groupcommit.Queue[*query]
	merger  merger
}

// merger puts reads together.
type merger struct {
	// Of the read that is being put together, by shard: the number of its group, counted from 1, and the places of
	// its keys. The maps are empty in between, and nil for shards that were never asked or of which a read had many keys.
	groupOf []int
	places  []map[string]int
	// groups is memory for the next read.
	groups []KeyGroup
}

func newMerger(shards int) merger {
	return merger{groupOf: make([]int, shards), places: make([]map[string]int, shards)}
}

func newReader(s *Store) *reader {
	r := &reader{scripts: s.scripts, clock: s.clock, metrics: s.metrics, merger: newMerger(s.cfg.Shards)}
	r.queue = groupcommit.New(groupcommit.Config[*query]{
		MaxQueue: maxQueueKeys, MaxBatch: maxKeysPerRead, Weigh: (*query).weight,
		Gather: groupcommit.Gather{Enough: gatherKeys, Wait: gatherWait}, Yield: true,
	}, r.run)
	return r
}

func (r *reader) run(ctx context.Context, queries []*query) {
	replies, err := r.read(ctx, r.merger.merge(queries))
	for _, q := range queries {
		if err == nil {
			q.takeOver(replies)
		}
		q.finish(err)
	}
	r.merger.forget()
}

// takeOver sets the answers of all lookups.
func (q *query) takeOver(replies []ReadReply) {
	for i := range q.lookups {
		l := &q.lookups[i]
		reply := &replies[l.group]
		l.KeyValue, l.micros = reply.Values[l.index], reply.Micros
	}
}

// merge joins the lookups of all queries, each shard and key once, and tells each where it is.
func (m *merger) merge(queries []*query) []KeyGroup {
	groups := m.groups[:0]
	for _, q := range queries {
		for i := range q.lookups {
			l := &q.lookups[i]
			if m.groupOf[l.shard] == 0 {
				groups = appendGroup(groups, l.shard)
				m.groupOf[l.shard] = len(groups)
				if m.places[l.shard] == nil {
					m.places[l.shard] = make(map[string]int)
				}
			}
			l.group = m.groupOf[l.shard] - 1
			g, places := &groups[l.group], m.places[l.shard]
			g.Away = g.Away && l.away
			at, ok := places[l.key]
			if !ok {
				at = len(g.Keys)
				places[l.key] = at
				g.Keys = append(g.Keys, l.key)
			}
			l.index = at
		}
	}
	for i := range groups {
		m.groupOf[groups[i].Shard] = 0
		if len(groups[i].Keys) > maxKeptPlaces {
			m.places[groups[i].Shard] = nil
		} else {
			clear(m.places[groups[i].Shard])
		}
	}
	m.groups = groups
	return groups
}

// appendGroup adds a group without keys, and so without those whose home it is. It takes over the memory of the one that was
// there in an earlier read.
func appendGroup(groups []KeyGroup, shard int) []KeyGroup {
	if len(groups) == cap(groups) {
		return append(groups, KeyGroup{Shard: shard, Away: true})
	}
	groups = groups[:len(groups)+1]
	g := &groups[len(groups)-1]
	g.Shard, g.Keys, g.Away = shard, g.Keys[:0], true
	return groups
}

// forget lets go of the keys of a read that is over, and of the memory for many.
func (m *merger) forget() {
	for i := range m.groups {
		if g := &m.groups[i]; len(g.Keys) > maxKeptPlaces {
			g.Keys = nil
		} else {
			clear(g.Keys)
		}
	}
}

func (r *reader) read(ctx context.Context, groups []KeyGroup) ([]ReadReply, error) {
	replies, err := tryRead(ctx, r.metrics, scriptRead, func(ctx context.Context) ([]ReadReply, error) {
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
