package ledgertest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
)

// concurrentLikes likes and unlikes one pair over both handles at once, some of it in groups with other pairs, and
// repeats every other call with its id. Each true change is answered with Changed once, and no read shows more than
// the pair can be.
func concurrentLikes(t *testing.T, l DirectInstance) {
	const senders, rounds = 6, 30
	key := Key()
	var mu sync.Mutex
	net := 0
	done := make(chan struct{})
	var readers, group sync.WaitGroup
	for _, ledger := range []flush.DirectLedger{l, l.Other} {
		readers.Go(func() {
			for {
				counts, err := ledger.Counts(context.Background(), []string{key})
				if err != nil || counts[0].Value < 0 || counts[0].Value > 1 || counts[0].Likes != counts[0].Value {
					t.Errorf("read %+v, %v of one actor's like", counts, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for s := range senders {
		ledgers := []flush.DirectLedger{l, l.Other}
		group.Go(func() {
			for i := range rounds {
				change, sign := Like(key, "ann"), 1
				if (s+i)%2 == 0 {
					change, sign = Unlike(key, "ann"), -1
				}
				changes := []counter.Change{With(Opaque(), change)}
				if i%3 == 0 {
					changes = append(changes, Like(Key(), fmt.Sprint("actor-", s)), With(Opaque(), Unlike(Key(), "ann")))
				}
				verdicts, _, err := ledgers[i%2].Commit(context.Background(), changes)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				if verdicts[0].Changed {
					mu.Lock()
					net += sign
					mu.Unlock()
				}
				again, _, err := ledgers[s%2].Commit(context.Background(), changes[:1])
				if want := (flush.Verdict{Outcome: counter.Duplicate, Changed: verdicts[0].Changed}); err != nil || again[0] != want {
					t.Errorf("repeated: %+v, %v, want %+v", again, err, want)
					return
				}
			}
		})
	}
	group.Wait()
	close(done)
	readers.Wait()
	liked := likeState(t, l, key, "ann").Liked
	if net != 0 && net != 1 || liked != (net == 1) {
		t.Errorf("liked %v after likes and unlikes that changed it by %d", liked, net)
	}
	wantLikes(t, l, key, int64(net), int64(net))
	for _, last := range []counter.Change{Unlike(key, "ann"), Like(key, "ann")} {
		commit(t, l.Other, last)
		if got := likeState(t, l, key, "ann").Liked; got != (last.Like == counter.SetLiked) {
			t.Errorf("liked %v after the last change", got)
		}
	}
	wantLikes(t, l, key, 1, 1)
}

// likesInOppositeOrder sends groups of the same pairs over both handles, in opposite orders: they wait for each
// other, and each pair is counted once.
func likesInOppositeOrder(t *testing.T, l DirectInstance) {
	const senders, rounds, actors, names = 4, 8, 20, 3
	keys := make([]string, names)
	for i := range keys {
		keys[i] = Key()
	}
	var mu sync.Mutex
	net := make(map[counter.Pair]int)
	var group sync.WaitGroup
	for s := range senders {
		ledger := []flush.DirectLedger{l, l.Other}[s%2]
		group.Go(func() {
			for round := range rounds {
				var changes []counter.Change
				for i := range actors * names {
					n := i
					if s >= senders/2 {
						n = actors*names - 1 - i
					}
					key, actor := keys[n%names], fmt.Sprint("actor-", n/names)
					if (round+s+n)%3 == 0 {
						changes = append(changes, Unlike(key, actor))
					} else {
						changes = append(changes, Like(key, actor))
					}
				}
				verdicts, _, err := ledger.Commit(context.Background(), changes)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				mu.Lock()
				for i, v := range verdicts {
					switch {
					case v.Changed && changes[i].Like == counter.SetLiked:
						net[changes[i].Pair()]++
					case v.Changed:
						net[changes[i].Pair()]--
					}
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	total := int64(0)
	for pair, n := range net {
		if liked := likeState(t, l, pair.Key, pair.Actor).Liked; n != 0 && n != 1 || liked != (n == 1) {
			t.Errorf("%v: liked %v after changes by %d", pair, liked, n)
		}
		total += int64(n)
	}
	sum := int64(0)
	for _, key := range keys {
		counts, err := l.Counts(t.Context(), []string{key})
		if err != nil {
			t.Fatal(err)
		}
		sum += counts[0].Likes
	}
	if sum != total {
		t.Errorf("%d likes, want %d", sum, total)
	}
}
