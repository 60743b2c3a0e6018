package shard

import "github.com/plusone-dev/plusone/internal/counter"

// maxLikedLookups bounds what is read behind a batch, as Redis does nothing else meanwhile: half a millisecond at most. A
// spread key takes a lookup of each shard. The likes of keys that are beyond it get no count.
const maxLikedLookups = 512

// likedCounts reads the counts for the answers to a batch's likes, right behind the batch. It belongs to the lane of a
// standalone Redis. Those of a cluster have none, as a script may not touch the shards of a spread key: nil reads nothing.
type likedCounts struct {
	store  *Store
	merger merger
	// call has the reads of the batch, in the order of keys; query is its only one.
	call  countsCall
	query *query
	// liked are keys that were liked here before, whose bases the answers to those likes have cached. The count of any other key
	// would have to be read twice.
	liked *latelySet
	// keys of the batch, and where they are; after takeOver the counts that are known.
	keys   []string
	places map[string]int
	counts []*counter.Count
}

func newLikedCounts(s *Store) *likedCounts {
	if s.cfg.Cluster {
		return nil
	}
	l := &likedCounts{store: s, merger: newMerger(s.cfg.Shards), query: newQuery(s.cfg.Shards), liked: newLatelySet(), places: map[string]int{}}
	l.call.queries = []*query{l.query}
	return l
}

// ask returns what to read behind a batch.
func (l *likedCounts) ask(jobs []*job) []KeyGroup {
	if l == nil {
		return nil
	}
	l.reset()
	lookups := 0
	for _, j := range jobs {
		if !j.change.WantCount {
			continue
		}
		key := j.change.Entries[0].Key
		if _, there := l.places[key]; there {
			continue
		}
		if ref := (counter.Pair{Key: key}); !l.liked.has(ref) {
			l.liked.add(ref)
			continue
		}
		cost := 1
		if l.store.markers.get(key) != 0 {
			cost = l.store.cfg.Shards
		}
		if lookups += cost; lookups > maxLikedLookups {
			break
		}
		l.places[key] = len(l.keys)
		l.keys = append(l.keys, key)
	}
	if len(l.keys) == 0 {
		return nil
	}
	l.call.reads = make([]keyRead, len(l.keys))
	for i, key := range l.keys {
		l.store.beginRead(&l.call.reads[i], key)
	}
	l.store.fillQueries(&l.call)
	return l.merger.merge(l.call.queries)
}

// takeOver takes over the answer. There is no count of a key whose base must be loaded, or that turns out to be spread.
func (l *likedCounts) takeOver(replies []ReadReply) {
	if l == nil || len(replies) == 0 || len(replies) != len(l.merger.groups) {
		return
	}
	l.query.takeOver(replies)
	l.counts = append(l.counts, make([]*counter.Count, len(l.keys))...)
	for i := range l.call.reads {
		r := &l.call.reads[i]
		l.store.takeOverKey(r, l.call.queries, nil)
		if len(r.left) == 0 {
			count := r.count()
			l.counts[i] = &count
		}
	}
}

// of returns the count for a job, nil if there is none.
func (l *likedCounts) of(j *job) *counter.Count {
	if l == nil || len(l.counts) == 0 || !j.change.WantCount {
		return nil
	}
	at, there := l.places[j.change.Entries[0].Key]
	if !there {
		return nil
	}
	return l.counts[at]
}

func (l *likedCounts) reset() {
	l.query.reset()
	l.merger.forget()
	clear(l.places)
	clear(l.counts)
	l.keys, l.counts, l.call.reads = l.keys[:0], l.counts[:0], nil
}
