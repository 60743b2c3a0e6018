package shard_test

import "fmt"

func (w *world) goBack() {
	if len(w.past) == 0 || w.rnd.IntN(2) == 0 {
		w.past = append(w.past, w.redis.Snapshot())
		return
	}
	// Redis never goes to a state of which it went back before: it would bring back changes that may have been
	// lost, sent again and counted.
	if w.rnd.IntN(4) == 0 {
		w.goBackTo(w.redis.FlushAll)
		w.past = nil
	} else {
		i := w.rnd.IntN(len(w.past))
		w.goBackTo(w.past[i])
		w.past = w.past[:i+1]
	}
}

func (w *world) goBackTo(past func()) {
	before := w.pending()
	past()
	after, ledger := w.pending(), w.ledger.Totals()
	for n := range before {
		if !after[n] && ledger[w.ops[n].own()] == 0 {
			w.lost[n] = true
		}
	}
	w.epoch++
}

// pending are the operations that Redis holds in windows.
func (w *world) pending() map[int]bool {
	ops := map[int]bool{}
	scripts := w.redis.Scripts()
	for _, id := range w.redis.Windows() {
		for cursor := uint64(0); ; {
			next, part, err := scripts.Scan(w.t.Context(), 0, id, cursor)
			if err != nil {
				w.failf("scan: %v", err)
			}
			for key := range part.Deltas {
				var n int
				if _, err := fmt.Sscanf(key, "op/%d", &n); err == nil {
					ops[n] = true
				}
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	return ops
}
