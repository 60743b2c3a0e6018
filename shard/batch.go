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
	write  WriteBatch
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
	claimed map[claimRef]struct{}
}

// claimRef names a claim within a shard.
type claimRef struct {
	kind           ClaimKind
	bucket, period int64
	field          string
}

func (c *claim) ref() claimRef { return claimRef{c.kind, c.bucket, c.period, c.field} }

func newBatch(shards int) *batch { return &batch{shards: make([]*shardBatch, shards)} }

func (b *batch) reset() {
	clear(b.jobs)
	b.jobs = b.jobs[:0]
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
	s.groups, s.owners = s.groups[:0], s.owners[:0]
	clear(s.claimed)
}

// fits reports whether a job can join the batch. It cannot if a claim of it is already there (one of the two
// is a repeat, and must meet the other's claim in Redis), if a merged delta would overflow, or if it
// knows another marker of a key.
func (b *batch) fits(j *job) bool {
	for i := range j.parts {
		p := &j.parts[i]
		s := b.shards[p.shard]
		if p.outcome != 0 || s == nil {
			continue
		}
		if p.id.set {
			if _, there := s.claimed[p.id.ref()]; there {
				return false
			}
		}
		if p.once.set {
			if _, there := s.claimed[p.once.ref()]; there {
				return false
			}
		}
		if j.change.Like != counter.NoLike {
			continue
		}
		for k, e := range p.entries {
			at, there := s.index[e.Key]
			if !there {
				continue
			}
			if _, ok := counter.Add(s.entries[at].Delta, e.Delta); !ok || s.markers[at] != p.marker(k) {
				return false
			}
		}
	}
	return true
}

func (p *part) marker(i int) Marker {
	if p.markers == nil {
		return 0
	}
	return p.markers[i]
}

// add joins a job that fits.
func (b *batch) add(j *job) {
	b.jobs = append(b.jobs, j)
	for i := range j.parts {
		p := &j.parts[i]
		if p.outcome != 0 {
			continue
		}
		s := b.shards[p.shard]
		if s == nil {
			s = &shardBatch{index: map[string]int{}, claimed: map[claimRef]struct{}{}}
			b.shards[p.shard] = s
		}
		if !s.inUse {
			s.inUse = true
			b.used = append(b.used, p.shard)
		}
		if j.change.Like != counter.NoLike {
			s.like(&j.change, p)
			continue
		}
		s.resets = j.change.Reset
		for k, e := range p.entries {
			at, there := s.index[e.Key]
			if !there {
				at = len(s.entries)
				s.index[e.Key] = at
				s.entries = append(s.entries, counter.Entry{Key: e.Key})
				s.markers = append(s.markers, p.marker(k))
				s.changes = append(s.changes, 0)
			}
			s.entries[at].Delta += e.Delta
			s.changes[at]++
		}
		s.claim(p, &p.id)
		s.claim(p, &p.once)
	}
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
	s.claimed[c.ref()] = struct{}{}
	g := 0
	for g < len(s.groups) {
		o := &s.groups[g]
		if o.Kind == c.kind && o.Bucket == c.bucket && o.Period == c.period && o.Current == c.current {
			break
		}
		g++
	}
	if g == len(s.groups) {
		s.groups = append(s.groups, ClaimGroup{
			Kind: c.kind, Bucket: c.bucket, Oldest: c.time, Newest: c.time, Period: c.period, Current: c.current,
		})
		s.owners = append(s.owners, nil)
	}
	o := &s.groups[g]
	o.Oldest, o.Newest = min(o.Oldest, c.time), max(o.Newest, c.time)
	o.Fields, o.Values = append(o.Fields, c.field), append(o.Values, c.value)
	s.owners[g] = append(s.owners[g], p)
	return g, len(o.Fields) - 1
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
