package shard

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// TestOnesFirst: what belongs to an entry moves with it.
func TestOnesFirst(t *testing.T) {
	t.Parallel()
	s := shardBatch{
		entries: []counter.Entry{{Key: "a", Delta: 2}, {Key: "b", Delta: 1}, {Key: "c", Delta: -1}, {Key: "d", Delta: 1}},
		markers: []Marker{10, 20, 30, 40},
		changes: []int{1, 2, 3, 4},
	}
	s.onesFirst()
	entries := []counter.Entry{{Key: "b", Delta: 1}, {Key: "d", Delta: 1}, {Key: "c", Delta: -1}, {Key: "a", Delta: 2}}
	if !slices.Equal(s.entries, entries) || !slices.Equal(s.markers, []Marker{20, 40, 30, 10}) || !slices.Equal(s.changes, []int{2, 4, 3, 1}) {
		t.Errorf("the entries %v with markers %v and %v changes", s.entries, s.markers, s.changes)
	}
}

// TestJoin: who has to wait for the next batch, which takes any job that comes first.
func TestJoin(t *testing.T) {
	t.Parallel()
	const id, otherID = "0190b5f0-1111-7111-8111-111111111111", "0190b5f0-1111-7111-8111-222222222222"
	entry := func(key string, delta int64) []counter.Entry { return []counter.Entry{{Key: key, Delta: delta}} }
	with := func(requestID, key string) counter.Change {
		return counter.Change{Entries: entry(key, 1), RequestID: counter.ParseRequestID(requestID)}
	}
	once := func(requestID, key, actor string, per time.Duration) counter.Change {
		c := with(requestID, key)
		c.Actor, c.OncePer = actor, per
		return c
	}
	like := func(requestID string, action counter.LikeAction) counter.Change {
		return counter.Change{
			Entries: entry("a", 0), Actor: "actor", Like: action, RequestID: counter.ParseRequestID(requestID),
		}
	}
	markers := newMarkers()
	r := router{shards: 4, markers: markers, clock: newClock()}
	job := func(c counter.Change) *job {
		j := (&jobPool{}).get(&c)
		r.single(&j.parts[0], &c, c.Entries, fingerprintOf(&c, &counter.FingerprintKey{}))
		return j
	}
	b := newBatch(4)
	for name, test := range map[string]struct {
		first, second counter.Change
		marker        Marker // of key a, learnt between the two
		waits         bool
	}{
		"other ids":             {first: with(id, "a"), second: with(otherID, "a")},
		"no ids":                {first: with("", "a"), second: with("", "a")},
		"one id":                {first: with(id, "a"), second: with(id, "a"), waits: true},
		"one id, elsewhere":     {first: with(id, "a"), second: with(id, "b"), waits: true},
		"one id, not a time":    {first: with("id", "a"), second: with("id", "a"), waits: true},
		"likes with other ids":  {first: like(id, counter.SetLiked), second: like(otherID, counter.SetUnliked)},
		"likes without ids":     {first: like("", counter.SetLiked), second: like("", counter.SetUnliked)},
		"likes with one id":     {first: like(id, counter.SetLiked), second: like(id, counter.SetUnliked), waits: true},
		"other actors":          {first: once("", "a", "x", time.Hour), second: once("", "a", "y", time.Hour)},
		"one actor, other keys": {first: once("", "a", "x", time.Hour), second: once("", "b", "x", time.Hour)},
		"one actor and key":     {first: once(id, "a", "x", time.Hour), second: once(otherID, "a", "x", time.Hour), waits: true},
		"deltas that fit":       {first: counter.Change{Entries: entry("a", math.MaxInt64)}, second: counter.Change{Entries: entry("a", -1)}},
		"deltas that overflow":  {first: counter.Change{Entries: entry("a", math.MaxInt64)}, second: with(id, "a"), waits: true},
		"another marker":        {first: with(id, "a"), second: with(otherID, "a"), marker: 1 << 42, waits: true},
	} {
		markers.learn("a", 0)
		first := job(test.first)
		markers.learn("a", test.marker)
		second := job(test.second)
		b.reset()
		if !b.join(first) || b.join(second) == test.waits {
			t.Errorf("%s: the second waits: %v", name, !test.waits)
		}
		b.reset()
		if !b.join(second) || len(b.jobs) != 1 || len(b.used) != 1 {
			t.Errorf("%s: the second did not begin a batch of its own", name)
		}
		s := b.shards[b.used[0]]
		for g, group := range s.groups {
			if len(group.Fields) != 1 || len(group.Values) != 1 || len(s.owners[g]) != 1 || s.owners[g][0] != &second.parts[0] {
				t.Errorf("%s: the claims %+v of %v", name, group, s.owners[g])
			}
		}
	}
}
