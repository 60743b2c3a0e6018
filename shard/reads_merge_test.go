package shard_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/shard"
)

// heldReads holds reads until they are let go, one by one, and remembers them.
type heldReads struct {
	shard.Scripts
	asked chan []shard.KeyGroup
	goOn  chan struct{}
}

func (h *heldReads) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	h.asked <- groups
	<-h.goOn
	return h.Scripts.Read(ctx, groups)
}

// TestReadsShareAScript: what is asked while a read is under way is asked once in the next, whoever wants it, and everybody
// gets his own keys' counts. A read of many keys leaves nothing behind for the one after it.
func TestReadsShareAScript(t *testing.T) {
	t.Parallel()
	c, _ := newTrips(t)
	held := &heldReads{Scripts: c.Scripts, asked: make(chan []shard.KeyGroup), goOn: make(chan struct{})}
	store := storeOn(t, &trips{Scripts: held, ledger: c.ledger, read: make(chan struct{}, 10_000)})
	const keys = 3_000 // so that a shard has more than a reader keeps places for
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprint("k", i)
		window := flush.Window{Shard: shard.Home(names[i], 8), ID: int64(i + 1), WindowPart: shard.WindowPart{Deltas: map[string]int64{names[i]: int64(i)}}}
		if _, err := c.ledger.Apply(t.Context(), window); err != nil {
			t.Fatal(err)
		}
	}
	var readers sync.WaitGroup
	read := func(from, to int) {
		readers.Go(func() {
			for i, r := range store.Counts(t.Context(), names[from:to]) {
				if r.Err != nil || r.Key != names[from+i] || r.Value != int64(from+i) {
					t.Errorf("%s is %s %d, %v", names[from+i], r.Key, r.Value, r.Err)
				}
			}
		})
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for groups := range held.asked {
			seen := map[string]bool{}
			for _, g := range groups {
				for _, key := range g.Keys {
					if seen[key] || g.Shard != shard.Home(key, 8) {
						t.Errorf("%s is asked for on shard %d, before: %v", key, g.Shard, seen[key])
					}
					seen[key] = true
				}
			}
			held.goOn <- struct{}{}
		}
	}()
	for round := range 3 {
		for i := range 200 {
			read(i%50, i%50+1)
			read(i, i+20)
		}
		if round == 1 {
			read(0, keys)
		}
		readers.Wait()
	}
	close(held.asked)
	<-stopped
}
