// Package twin is the window protocol in memory: what the scripts of package shard do in Redis, written a
// second time from the rules of docs/design.md. Tests use it where a Redis would only cost time, and as the
// model that the scripts are compared with. It is for tests alone.
package twin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// Limits that the scripts have as well.
const (
	// batchLifetime is how long after it was made a batch may be applied, in ms.
	batchLifetime = 10_000
	// margin is how much longer than necessary claims are kept, in ms.
	margin = 60_000
	// claimBucket is the length of the buckets of batch ids and UUIDv7 request ids, in ms.
	claimBucket    = 60_000
	maxSealed      = 64
	maxSwept       = 100
	maxKeysPerRead = 4_000
)

// Redis is an in-memory shard.Scripts, and safe for concurrent use. It answers every call, whatever the
// context, and never runs full.
type Redis struct {
	cfg shard.RedisConfig
	now func() int64

	mu     sync.Mutex
	shards []*shardState
}

var _ shard.Scripts = (*Redis)(nil)

// New returns an empty twin. Now is its clock, in Unix microseconds; it is called with a lock held and must
// not call back. The settings that say how Redis replicates mean nothing here.
func New(cfg shard.RedisConfig, now func() (micros int64)) *Redis {
	r := &Redis{cfg: cfg, now: now}
	r.FlushAll()
	return r
}

// shardState is what Redis holds of one shard. Times and windows are in ms.
type shardState struct {
	sealed, fin int64
	gen         string
	lost        int64 // when a rollback was last noticed, 0 for never
	restoreDue  bool
	liked       bool      // there ever was a like
	windows     []*window // ascending
	bases       map[baseName]base
	tokens      map[int64]string // by which windows were sealed
	spread      map[string]shard.Marker
	marked      *int64                 // the newest window when a marker was last added, nil if none was
	claims      map[string]*claims     // by bucket
	members     map[string]*membership // by bucket
}

type window struct {
	id       int64
	deltas   map[string]int64
	likeSums map[string]int64 // the part of deltas that is supposed to come from likes
	likes    map[counter.Pair]shard.PendingLike
	markers  map[string]shard.Marker
}

func newWindow(id int64) *window {
	return &window{
		id: id, deltas: map[string]int64{}, likeSums: map[string]int64{}, likes: map[counter.Pair]shard.PendingLike{},
		markers: map[string]shard.Marker{},
	}
}

func (w *window) clone() *window {
	return &window{
		id: w.id, deltas: maps.Clone(w.deltas), likeSums: maps.Clone(w.likeSums), likes: maps.Clone(w.likes),
		markers: maps.Clone(w.markers),
	}
}

func (w *window) size() int { return len(w.deltas) + len(w.likeSums) + len(w.likes) + len(w.markers) }

// baseName names a base of a generation; those of other generations are there and never read.
type baseName struct{ gen, key string }

type base struct {
	total, likes int64
	expires      int64
}

// claims is a bucket of claims and the values kept with them.
type claims struct {
	forget int64
	values map[string]string
}

func newShardState() *shardState {
	return &shardState{
		bases: map[baseName]base{}, tokens: map[int64]string{}, spread: map[string]shard.Marker{}, claims: map[string]*claims{},
		members: map[string]*membership{},
	}
}

func (s *shardState) clone() *shardState {
	c := *s
	c.bases, c.spread, c.tokens = maps.Clone(s.bases), maps.Clone(s.spread), maps.Clone(s.tokens)
	c.claims = make(map[string]*claims, len(s.claims))
	for name, bucket := range s.claims {
		c.claims[name] = &claims{forget: bucket.forget, values: maps.Clone(bucket.values)}
	}
	c.members = make(map[string]*membership, len(s.members))
	for name, bucket := range s.members {
		c.members[name] = &membership{forget: bucket.forget, since: bucket.since, states: maps.Clone(bucket.states)}
	}
	c.windows = make([]*window, len(s.windows))
	for i, w := range s.windows {
		c.windows[i] = w.clone()
	}
	return &c
}

// base returns the cached base of a key.
func (s *shardState) base(key string, now int64) (b base, ok bool) {
	b, ok = s.bases[baseName{s.gen, key}]
	if !ok || now > b.expires {
		return base{}, false
	}
	return b, true
}

// find returns the position of a window, -1 if it is not there.
func (s *shardState) find(id int64) int {
	return slices.IndexFunc(s.windows, func(w *window) bool { return w.id == id })
}

func (s *shardState) remove(id int64) {
	s.windows = slices.DeleteFunc(s.windows, func(w *window) bool { return w.id == id })
}

// current returns the window that takes the changes of this moment (rule 1), nil if it must be opened.
func (s *shardState) current(now, length int64) *window {
	if n := len(s.windows); n > 0 {
		if last := s.windows[n-1]; last.id > s.sealed && last.id > s.fin && now-last.id < length {
			return last
		}
	}
	return nil
}

// open adds a window for this moment.
func (s *shardState) open(now int64) *window {
	w := newWindow(max(now, s.sealed+1, s.fin+1))
	if n := len(s.windows); n > 0 {
		w.id = max(w.id, s.windows[n-1].id+1)
	}
	s.windows = append(s.windows, w)
	return w
}

// knows reports whether the window was sealed here by its token.
func (s *shardState) knows(w shard.SealedWindow) bool {
	token, sealed := s.tokens[w.ID]
	return sealed && token == w.Token
}

// rollback records that Redis was found to have gone back in time.
func (s *shardState) rollback(now int64) { s.lost, s.restoreDue = now, true }

// lock locks the twin and returns the moment in ms.
func (r *Redis) lock() (now int64, unlock func()) {
	r.mu.Lock()
	return r.now() / 1000, r.mu.Unlock
}

// Snapshot is what a twin held at a moment.
type Snapshot struct{ shards []*shardState }

// Snapshot copies all that the twin holds.
func (r *Redis) Snapshot() Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Snapshot{cloneAll(r.shards)}
}

// Restore rolls the twin back to a snapshot, which stays as it is.
func (r *Redis) Restore(s Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards = cloneAll(s.shards)
}

// RestoreShard rolls one shard back to a snapshot, as a failover in a cluster does.
func (r *Redis) RestoreShard(s Snapshot, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards[n] = s.shards[n].clone()
}

// FlushAll deletes everything.
func (r *Redis) FlushAll() {
	shards := make([]*shardState, r.cfg.Shards)
	for i := range shards {
		shards[i] = newShardState()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards = shards
}

// Evict deletes the cached bases of a key on all shards, as a full Redis may.
func (r *Redis) Evict(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.shards {
		maps.DeleteFunc(s.bases, func(name baseName, _ base) bool { return name.key == key })
	}
}

func cloneAll(shards []*shardState) []*shardState {
	clones := make([]*shardState, len(shards))
	for i, s := range shards {
		clones[i] = s.clone()
	}
	return clones
}

// Read implements shard.Scripts.
func (r *Redis) Read(_ context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read(groups)
}

func (r *Redis) read(groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	micros := r.now()
	replies := make([]shard.ReadReply, len(groups))
	for i, g := range groups {
		if len(g.Keys) > maxKeysPerRead {
			return nil, fmt.Errorf("read of %d keys of a shard, at most %d", len(g.Keys), maxKeysPerRead)
		}
		s := r.shards[g.Shard]
		replies[i] = shard.ReadReply{Micros: micros, Values: make([]shard.KeyValue, len(g.Keys))}
		for k, key := range g.Keys {
			b, cached := s.base(key, micros/1000)
			sum, likes := sumOf(b.total), sumOf(b.likes)
			for _, w := range s.windows {
				sum.add(w.deltas[key])
				likes.add(w.likeSums[key])
			}
			replies[i].Values[k] = shard.KeyValue{Value: sum.saturated(), Likes: likes.saturated(), Cached: cached}
			if !g.Away {
				replies[i].Values[k].Marker = s.spread[key]
			}
		}
	}
	return replies, nil
}

// Load implements shard.Scripts.
func (r *Redis) Load(_ context.Context, n int, watermark int64, bases []shard.Base) (bool, error) {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	if s.fin > watermark {
		return false, nil
	}
	for _, b := range bases {
		if _, cached := s.base(b.Key, now); !cached {
			sum, likes := sumOf(b.Total), sumOf(b.Likes)
			for _, w := range s.windows {
				if w.id <= watermark {
					sum.subtract(w.deltas[b.Key])
					likes.subtract(w.likeSums[b.Key])
				}
			}
			s.bases[baseName{s.gen, b.Key}] = base{
				total: sum.saturated(), likes: likes.saturated(), expires: now + b.TTL.Milliseconds(),
			}
		}
		switch b.Marker {
		case 0:
		case shard.ImpliedMarker:
			s.mark(b.Key, shard.NewMarker(now, 0))
		default:
			s.mark(b.Key, b.Marker)
		}
	}
	return true, nil
}

// mark sets the marker of a key that has none.
func (s *shardState) mark(key string, marker shard.Marker) {
	if _, there := s.spread[key]; !there {
		s.spread[key] = marker
		s.noteMarked()
	}
}

// noteMarked notes that markers were added, and which window was the newest: if there is none, the last that was finished.
func (s *shardState) noteMarked() {
	newest := s.fin
	if len(s.windows) > 0 {
		newest = s.windows[len(s.windows)-1].id
	}
	s.marked = &newest
}

// Spread implements shard.Scripts.
func (r *Redis) Spread(_ context.Context, n int, keys []string, width int) ([]shard.Marker, error) {
	now, unlock := r.lock()
	defer unlock()
	s := r.shards[n]
	markers := make([]shard.Marker, len(keys))
	for i, key := range keys {
		if s.spread[key] == 0 && len(s.spread) < r.cfg.MaxSpread {
			w := s.current(now, r.cfg.Window.Milliseconds())
			if w == nil {
				w = s.open(now)
			}
			s.spread[key] = shard.NewMarker(now, width)
			if _, there := w.markers[key]; !there {
				w.markers[key] = s.spread[key]
			}
			s.noteMarked()
		}
		markers[i] = s.spread[key]
	}
	return markers, nil
}

// Claimed implements shard.Scripts.
func (r *Redis) Claimed(_ context.Context, n int, ids []counter.RequestID, now int64) ([]shard.ClaimValue, error) {
	_, unlock := r.lock()
	defer unlock()
	claims := make([]shard.ClaimValue, len(ids))
	for i, id := range ids {
		var names []string
		if made, timed := id.Time(); timed {
			names = append(names, timedName(made-made%claimBucket))
		} else {
			number := now / r.opaqueBucket()
			for b := number - 2; b <= number+1; b++ {
				names = append(names, opaqueName(b))
			}
		}
		for _, name := range names {
			if bucket := r.shards[n].claims[name]; bucket != nil && !claims[i].Known {
				claims[i].Value, claims[i].Known = bucket.values[id.Bytes()]
			}
		}
	}
	return claims, nil
}

// opaqueBucket is the length of the buckets of request ids without a time, in ms.
func (r *Redis) opaqueBucket() int64 { return (r.cfg.Dedupe + counter.MaxEarly).Milliseconds() }
