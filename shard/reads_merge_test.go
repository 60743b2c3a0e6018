package shard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
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

// TestReadWhoseCallerLeft: its query stays with the lane, and nobody else gets what it is answered.
func TestReadWhoseCallerLeft(t *testing.T) {
	t.Parallel()
	c, _ := newTrips(t)
	held := &heldReads{Scripts: c.Scripts, asked: make(chan []shard.KeyGroup), goOn: make(chan struct{})}
	store := storeOn(t, &trips{Scripts: held, ledger: c.ledger, read: make(chan struct{}, 10_000)})
	const keys = 50
	for i := range keys {
		key := fmt.Sprint("k", i)
		window := flush.Window{Shard: shard.Home(key, 8), ID: int64(i + 1), WindowPart: shard.WindowPart{Deltas: map[string]int64{key: int64(i)}}}
		if _, err := c.ledger.Apply(t.Context(), window); err != nil {
			t.Fatal(err)
		}
	}
	var readers sync.WaitGroup
	for i := range keys {
		// One read is under way, its caller and one who waits behind it leave, and then others come.
		for _, key := range []string{"under way", "waits"} {
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan counter.Reading)
			go func() { left <- store.Counts(ctx, []string{key})[0] }()
			if key == "under way" {
				<-held.asked
			}
			cancel()
			if r := <-left; !errors.Is(r.Err, context.Canceled) || !errors.Is(r.Err, counter.ErrUnavailable) {
				t.Errorf("%s: %v after its caller left", key, r.Err)
			}
		}
		for n := range 4 {
			readers.Go(func() {
				want := (i + n) % keys
				if r := store.Counts(t.Context(), []string{fmt.Sprint("k", want)})[0]; r.Err != nil || r.Value != int64(want) {
					t.Errorf("k%d is %d, %v", want, r.Value, r.Err)
				}
			})
		}
		held.goOn <- struct{}{}
		answered := make(chan struct{})
		go func() {
			readers.Wait()
			close(answered)
		}()
		for done := false; !done; {
			select {
			case <-held.asked:
				held.goOn <- struct{}{}
			case <-answered:
				done = true
			case <-time.After(10 * time.Second):
				t.Fatal("a read gets no answer")
			}
		}
	}
	go func() { // what was left behind
		for range held.asked {
			held.goOn <- struct{}{}
		}
	}()
	must(t, store.Close(t.Context()))
	close(held.asked)
}
