package twin

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// memberBucket is the length of the buckets of membership, in ms.
const memberBucket = 3_600_000

// membership is a bucket of the states that pairs were set to in an hour.
type membership struct {
	forget int64
	// since is the window above which all likes of windows went to the bucket, but for those that went to another hour's.
	since  int64
	states map[counter.Pair]shard.PendingLike
}

// memberName names the bucket of an hour. What was noted before a rollback was noticed has another name.
func (s *shardState) memberName(hour int64) string { return fmt.Sprintf("likes:%d:%d", s.lost, hour) }

// like returns the state of a pair as the shard knows it, from membership or else from the newest window, and the
// bucket that it was found in.
func (s *shardState) like(pair counter.Pair, now, length int64) (like shard.PendingLike, in *membership, known bool) {
	hour := now / memberBucket
	hours := []int64{hour, hour - 1}
	// Clocks agree within a window: a like may have been set by one that was ahead.
	if ahead := (now + length) / memberBucket; ahead > hour {
		hours = append(hours, hour+1)
	}
	for _, h := range hours {
		if in = s.members[s.memberName(h)]; in != nil {
			if like, known = in.states[pair]; known {
				return like, in, true
			}
		}
	}
	for i := len(s.windows) - 1; i >= 0; i-- {
		if like, known = s.windows[i].likes[pair]; known {
			return like, nil, true
		}
	}
	return shard.PendingLike{}, nil, false
}

// covered reports whether all likes of the windows above the watermark are known here.
func (s *shardState) covered(watermark, now, length int64) bool {
	if s.fin <= watermark {
		return true
	}
	hour := now / memberBucket
	bucket := s.members[s.memberName(hour)]
	return bucket != nil && watermark >= bucket.since && watermark >= hour*memberBucket+2*length-1 && (now+length)/memberBucket == hour
}

// remember notes the state of a pair in the bucket of this hour, and no longer in the one that it was found in. Since is for a
// bucket that is new.
func (s *shardState) remember(pair counter.Pair, like shard.PendingLike, since, now, length int64) {
	if _, in, _ := s.like(pair, now, length); in != nil {
		delete(in.states, pair)
	}
	hour := now / memberBucket
	name := s.memberName(hour)
	bucket := s.members[name]
	if bucket == nil {
		bucket = &membership{forget: (hour + 2) * memberBucket, since: since, states: map[counter.Pair]shard.PendingLike{}}
		s.members[name] = bucket
	}
	bucket.states[pair] = like
}

// Homes implements shard.Scripts.
func (r *Redis) Homes(_ context.Context, groups []shard.KeyGroup) ([]shard.HomeReply, error) {
	_, unlock := r.lock()
	defer unlock()
	replies := make([]shard.HomeReply, len(groups))
	for i, g := range groups {
		s := r.shards[g.Shard]
		replies[i] = shard.HomeReply{Marked: math.MaxInt64, Markers: make([]shard.Marker, len(g.Keys))}
		if s.marked != nil {
			replies[i].Marked = *s.marked
		}
		for k, key := range g.Keys {
			replies[i].Markers[k] = s.spread[key]
		}
	}
	return replies, nil
}

// Likes implements shard.Scripts.
func (r *Redis) Likes(_ context.Context, groups []shard.PairGroup) ([][]shard.PairValue, error) {
	now, unlock := r.lock()
	defer unlock()
	values := make([][]shard.PairValue, len(groups))
	for i, g := range groups {
		if len(g.Pairs) > maxKeysPerRead {
			return nil, fmt.Errorf("look-up of %d likes of a shard, at most %d", len(g.Pairs), maxKeysPerRead)
		}
		s := r.shards[g.Shard]
		values[i] = make([]shard.PairValue, len(g.Pairs))
		for k, pair := range g.Pairs {
			like, _, known := s.like(pair, now, r.cfg.Window.Milliseconds())
			values[i][k] = shard.PairValue{Known: known, PendingLike: like, Marker: s.spread[pair.Key]}
		}
	}
	return values, nil
}

// EvictLikes deletes the membership of an hour (of Unix time) on all shards, as a full Redis may.
func (r *Redis) EvictLikes(hour int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.shards {
		for name := range s.members {
			if strings.HasSuffix(name, fmt.Sprint(":", hour)) {
				delete(s.members, name)
			}
		}
	}
}
