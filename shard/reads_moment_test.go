package shard_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// eventfulReads has a key counted on one of its shards after each read, a second later.
type eventfulReads struct {
	shard.Scripts
	key     string
	shard   int
	micros  int64
	totals  map[int64]int64 // by the microsecond from which on they are so
	evicted bool            // the next read does not find the shard's base
}

func (e *eventfulReads) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	replies, err := e.Scripts.Read(ctx, groups)
	if err != nil {
		return nil, err
	}
	if at := slices.IndexFunc(groups, func(g shard.KeyGroup) bool { return g.Shard == e.shard }); e.evicted && at >= 0 {
		replies[at].Values[0].Cached, e.evicted = false, false
	}
	total := e.totals[e.micros] + 1
	e.micros += time.Second.Microseconds()
	e.totals[e.micros] = total
	_, err = e.Write(ctx, &shard.WriteBatch{
		ID: fmt.Sprint("after-", e.micros), Made: e.micros / 1000,
		Shards: []shard.ShardWrite{{Shard: e.shard, Entries: []counter.Entry{{Key: e.key, Delta: 1}}}},
	})
	return replies, err
}

// TestCountIsOfOneMoment: on a standalone Redis a count was true at its moment, however many rounds its read has taken. With
// parts of later moments, who passes the moment on could read less.
func TestCountIsOfOneMoment(t *testing.T) {
	t.Parallel()
	const key = "k"
	home := shard.Home(key, 8)
	for name, tc := range map[string]struct{ evicted, unknown bool }{
		"all is known":                      {},
		"a base was evicted":                {evicted: true},
		"another server has spread the key": {unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &eventfulReads{key: key, shard: (home + 1) % 8, micros: modelStart.UnixMicro(), totals: map[int64]int64{}}
			c := newTripsAt(func() int64 { return e.micros })
			e.Scripts, c.Scripts = c.Scripts, e
			s := storeOn(t, c)
			_, err := e.Spread(t.Context(), home, []string{key}, 0)
			must(t, err)
			value(t, s, key) // finds the marker, and loads the bases
			e.evicted = tc.evicted
			if tc.unknown {
				s = storeOn(t, c)
			}
			r := s.Counts(t.Context(), []string{key})[0]
			must(t, r.Err)
			equal(t, "count", r.Value, e.totals[r.AsOf.UnixMicro()])
		})
	}
}
