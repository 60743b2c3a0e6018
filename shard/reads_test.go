package shard_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// trips counts what reads cost.
type trips struct {
	shard.Scripts
	ledger  *twin.Ledger
	mu      sync.Mutex
	lookups []shard.KeyGroup // shards asked, with the keys
	queries [][]string       // keys asked of the ledger
	// release lets queries to the ledger go on, if it is not nil.
	release chan struct{}
	asked   chan struct{}
	read    chan struct{}
}

func (c *trips) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	c.mu.Lock()
	for _, g := range groups {
		c.lookups = append(c.lookups, shard.KeyGroup{Shard: g.Shard, Keys: slices.Clone(g.Keys), Away: g.Away})
	}
	c.mu.Unlock()
	defer func() { c.read <- struct{}{} }()
	return c.Scripts.Read(ctx, groups)
}

// countedLedger is the ledger whose queries are counted.
type countedLedger struct {
	*twin.Ledger
	c *trips
}

func (l countedLedger) Bases(ctx context.Context, keys []string) (shard.LedgerBases, error) {
	c := l.c
	c.mu.Lock()
	c.queries = append(c.queries, slices.Clone(keys))
	c.mu.Unlock()
	if c.release != nil {
		c.asked <- struct{}{}
		<-c.release
	}
	return l.Ledger.Bases(ctx, keys)
}

func (c *trips) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookups, c.queries = nil, nil
}

func newTrips(t *testing.T) (*trips, *shard.Store) {
	c := newTripsAt(modelStart.UnixMicro)
	return c, storeOn(t, c)
}

// newTripsAt are trips to a Redis with this clock.
func newTripsAt(now func() int64) *trips {
	const shards = 8
	return &trips{
		Scripts: twin.New(shard.RedisConfig{Shards: shards, Window: time.Minute, Dedupe: time.Minute, MaxSpread: 10}, now),
		ledger:  twin.NewLedger(shards),
		asked:   make(chan struct{}, 100),
		read:    make(chan struct{}, 100),
	}
}

func storeOn(t *testing.T, c *trips) *shard.Store {
	t.Helper()
	return storeOver(t, c, countedLedger{c.ledger, c}, 8)
}

// storeOver has a dedupe window of a minute, and is closed with the test.
func storeOver(t *testing.T, scripts shard.Scripts, ledger shard.Ledger, shards int) *shard.Store {
	t.Helper()
	store := shard.New(scripts, ledger, shard.Config{
		Shards: shards, Dedupe: time.Minute, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
	t.Cleanup(func() { _ = store.Close(context.WithoutCancel(t.Context())) })
	return store
}

func value(t *testing.T, s *shard.Store, key string) int64 {
	t.Helper()
	r := s.Counts(t.Context(), []string{key})[0]
	must(t, r.Err)
	return r.Value
}

// TestColdReadIsOneLookup: a cold key stays at home, so a read of it asks one shard.
func TestColdReadIsOneLookup(t *testing.T) {
	t.Parallel()
	c, store := newTrips(t)
	home := shard.Home("cold", 8)
	if _, err := c.ledger.Apply(t.Context(), flush.Window{Shard: home, ID: 1, WindowPart: shard.WindowPart{Deltas: map[string]int64{"cold": 7}}}); err != nil {
		t.Fatal(err)
	}
	value(t, store, "cold")
	c.reset()
	if got := value(t, store, "cold"); got != 7 {
		t.Errorf("count is %d, want 7", got)
	}
	equal(t, "lookups", fmt.Sprint(c.lookups), fmt.Sprint([]shard.KeyGroup{{Shard: home, Keys: []string{"cold"}}}))
	equal(t, "queries", len(c.queries), 0)
}

// TestMarkerIsLookedForAtHome: a read of a spread key asks all shards, and its home alone for the marker.
func TestMarkerIsLookedForAtHome(t *testing.T) {
	t.Parallel()
	c, store := newTrips(t)
	home := shard.Home("hot", 8)
	if _, err := c.Spread(t.Context(), home, []string{"hot"}, 0); err != nil {
		t.Fatal(err)
	}
	value(t, store, "hot")
	c.reset()
	value(t, store, "hot")
	equal(t, "shards asked", len(c.lookups), 8)
	for _, g := range c.lookups {
		equal(t, fmt.Sprint("away on shard ", g.Shard), g.Away, g.Shard != home)
	}
}

// TestMissingKeyIsLookedUpOnce: that the ledger does not have a key is remembered.
func TestMissingKeyIsLookedUpOnce(t *testing.T) {
	t.Parallel()
	c, store := newTrips(t)
	for range 3 {
		equal(t, "count", value(t, store, "missing"), 0)
	}
	equal(t, "queries", len(c.queries), 1)
}

// TestMissingBaseIsLoadedOnce: callers who miss the same base while it is being loaded share the load.
func TestMissingBaseIsLoadedOnce(t *testing.T) {
	t.Parallel()
	c, store := newTrips(t)
	c.release = make(chan struct{})
	var readers sync.WaitGroup
	read := func() { readers.Go(func() { value(t, store, "wanted") }) }
	read()
	<-c.asked
	<-c.read
	for range 50 {
		read()
	}
	<-c.read // some of them have missed it by now
	close(c.release)
	readers.Wait()
	equal(t, "queries", len(c.queries), 1)
}
