package shard

import (
	"crypto/rand"

	"github.com/plusone-dev/plusone/internal/counter"
)

// batch merges the jobs of one Write. Its memory is reused; it belongs to one lane.
type batch struct {
	jobs   []*job
	shards []*shardBatch // by shard number, nil until used
	used   []int         // shards of this batch, in order of first use
	// ids and onces are the request ids of its jobs, and their once-per claims by key and actor.
	ids, onces map[string]struct{}
	places     []int // what find has found
	write      WriteBatch
}

// shardBatch is the part of a batch that goes to one shard.
type shardBatch struct {
	inUse   bool
	resets  bool // of a job that is alone
	entries []counter.Entry
	markers []Marker
	changes []int // merged into each entry
	index   map[string]int
	likes   []LikeWrite
	likers  []*part // by position in likes
	groups  []ClaimGroup
	owners  [][]*part // by position in groups and their fields
}

func newBatch(shards int) *batch {
	return &batch{shards: make([]*shardBatch, shards), ids: map[string]struct{}{}, onces: map[string]struct{}{}}
}

func (b *batch) reset() {
	clear(b.jobs)
	b.jobs = b.jobs[:0]
	clear(b.ids)
	clear(b.onces)
	for _, s := range b.used {
		b.shards[s].reset()
	}
	b.used = b.used[:0]
}

func (s *shardBatch) reset() {
	s.inUse, s.resets = false, false
	clear(s.likes)
	clear(s.likers)
	s.likes, s.likers = s.likes[:0], s.likers[:0]
	clear(s.entries)
	s.entries, s.markers, s.changes = s.entries[:0], s.markers[:0], s.changes[:0]
	clear(s.index)
	for g := range s.groups {
		clear(s.groups[g].Fields)
		clear(s.groups[g].Values)
		clear(s.owners[g])
	}
	s.groups, s.owners = s.groups[:0], s.owners[:0]
}

// join adds a job, unless it has to wait for the next batch: if a claim of it is there already (one of the two is a repeat,
// and must meet the other's claim in Redis), if a merged delta would overflow, or if it knows another marker of a key. An
// empty batch takes any job.
func (b *batch) join(j *job) bool {
	if !b.find(j) || !b.isFirst(j) {
		return false
	}
	b.jobs = append(b.jobs, j)
	places := b.places
	for i := range j.parts {
		p := &j.parts[i]
		if p.outcome != 0 {
			continue
		}
		s := b.shard(p.shard)
		if j.change.Like != counter.NoLike {
			s.like(&j.change, p)
			continue
		}
		s.resets = j.change.Reset
		for k := range p.entries {
			s.add(places[k], &p.entries[k], p.marker(k))
		}
		places = places[len(p.entries):]
		s.claim(p, &p.id)
		if p.once != nil {
			s.claim(p, p.once)
		}
	}
	return true
}

// find finds the places of a job's entries in the batch, and reports whether they can be added.
func (b *batch) find(j *job) bool {
	b.places = b.places[:0]
	if j.change.Like != counter.NoLike {
		return true
	}
	for i := range j.parts {
		p := &j.parts[i]
		if p.outcome != 0 {
			continue
		}
		s := b.shards[p.shard]
		for k := range p.entries {
			at := notThere
			if s != nil {
				if place, there := s.index[p.entries[k].Key]; there {
					at = place
					if _, ok := counter.Add(s.entries[at].Delta, p.entries[k].Delta); !ok || s.markers[at] != p.marker(k) {
						return false
					}
				}
			}
			b.places = append(b.places, at)
		}
	}
	return true
}

// notThere is the place of an entry that the batch does not have.
const notThere = -1

// isFirst reports whether no job before has a claim of this one, in the batch or waiting for the next. It compares ids, and the
// keys and actors of once-per claims, whatever shard, time or period they are kept by: a job can wait that needs not.
func (b *batch) isFirst(j *job) bool {
	if id := j.change.RequestID; !id.IsZero() && !isNew(b.ids, id.Bytes()) {
		return false
	}
	once := j.parts[0].once
	return once == nil || isNew(b.onces, once.field)
}

// isNew adds to a set and reports whether that was new to it.
func isNew(set map[string]struct{}, text string) bool {
	had := len(set)
	set[text] = struct{}{}
	return len(set) > had
}

// shard is the part of the batch for a shard.
func (b *batch) shard(n int) *shardBatch {
	s := b.shards[n]
	if s == nil {
		s = &shardBatch{index: map[string]int{}}
		b.shards[n] = s
	}
	if !s.inUse {
		s.inUse = true
		b.used = append(b.used, n)
	}
	return s
}

func (p *part) marker(i int) Marker {
	if p.markers == nil {
		return 0
	}
	return p.markers[i]
}

// add adds an entry that was found at a place.
func (s *shardBatch) add(at int, e *counter.Entry, marker Marker) {
	if at == notThere {
		s.index[e.Key] = len(s.entries)
		s.entries, s.markers, s.changes = append(s.entries, *e), append(s.markers, marker), append(s.changes, 1)
		return
	}
	s.entries[at].Delta += e.Delta
	s.changes[at]++
}

func (s *shardBatch) like(c *counter.Change, p *part) {
	group, field := s.claim(p, &p.id)
	s.likes = append(s.likes, LikeWrite{
		Pair: c.Pair(), Liked: c.Like == counter.SetLiked, Marker: p.marker(0), Known: p.known, Group: group, Field: field,
		At: c.SetAt,
	})
	s.likers = append(s.likers, p)
}

// claim adds a claim, if it is one, and returns its position.
func (s *shardBatch) claim(p *part, c *claim) (group, field int) {
	if !c.set {
		return -1, 0
	}
	g := 0
	for g < len(s.groups) {
		o := &s.groups[g]
		if o.Kind == c.kind && o.Bucket == c.bucket && o.Period == c.period && o.Current == c.current {
			break
		}
		g++
	}
	if g == len(s.groups) {
		s.groups, s.owners = extend(s.groups), extend(s.owners)
		s.groups[g] = ClaimGroup{
			Kind: c.kind, Bucket: c.bucket, Oldest: c.time, Newest: c.time, Period: c.period, Current: c.current,
			Fields: s.groups[g].Fields[:0], Values: s.groups[g].Values[:0],
		}
		s.owners[g] = s.owners[g][:0]
	}
	o := &s.groups[g]
	o.Oldest, o.Newest = min(o.Oldest, c.time), max(o.Newest, c.time)
	o.Fields, o.Values = append(o.Fields, c.field), append(o.Values, c.value)
	s.owners[g] = append(s.owners[g], p)
	return g, len(o.Fields) - 1
}

// extend makes a list longer by one. That is what was there before the list was emptied, so that its memory is used again.
func extend[T any](list []T) []T {
	if len(list) < cap(list) {
		return list[:len(list)+1]
	}
	var zero T
	return append(list, zero)
}

// seal gives the batch an id and the time it was made, and returns it as it is sent, with counts to read.
func (b *batch) seal(made int64, counts []KeyGroup) *WriteBatch {
	var id [16]byte
	rand.Read(id[:])
	b.write = WriteBatch{ID: string(id[:]), Made: made, Shards: b.write.Shards[:0], Counts: counts}
	for _, n := range b.used {
		s := b.shards[n]
		s.onesFirst()
		b.write.Shards = append(b.write.Shards, ShardWrite{
			Shard: n, Entries: s.entries, Reset: s.resets, Markers: s.markers, Claims: s.groups, Likes: s.likes,
		})
	}
	return &b.write
}

// onesFirst moves the entries whose delta is 1 to the front, where the script takes less for each. No job may join the
// batch after it: the index is not kept.
func (s *shardBatch) onesFirst() {
	ones := 0
	for i := range s.entries {
		if s.entries[i].Delta != 1 {
			continue
		}
		s.entries[i], s.entries[ones] = s.entries[ones], s.entries[i]
		s.markers[i], s.markers[ones] = s.markers[ones], s.markers[i]
		s.changes[i], s.changes[ones] = s.changes[ones], s.changes[i]
		ones++
	}
}

// owner returns the part that a claim of the batch belongs to, and whether the claim is its request id.
func (b *batch) owner(k KnownClaim) (p *part, isID bool) {
	s := b.shards[b.used[k.Shard]]
	return s.owners[k.Group][k.Field], s.groups[k.Group].Kind != ClaimOnce
}

// entry returns the shard and key of an entry or like of the batch.
func (b *batch) entry(ref EntryRef) (shard int, key string) {
	n := b.used[ref.Shard]
	s := b.shards[n]
	if i := ref.Entry - len(s.entries); i >= 0 {
		return n, s.likes[i].Key
	}
	return n, s.entries[ref.Entry].Key
}
