package flush

import (
	"context"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// A window waits for the home shards of its likes until it is likesWait window lengths old, or leastLikesWait if
// that is longer, as a drain can be slow where windows are short. That is ample for a home that is drained at all. One
// that lost the marker in a rollback would be waited for in vain, and two shards that wait for each other end it so.
const (
	likesWait      = 3
	leastLikesWait = 15 * time.Second
)

// mustWait reports whether a window of shard n has likes of keys that were spread so lately that their homes may still
// hold older states of the same pairs. Homes come first: the ledger would know the newer state, and what the home
// holds, which is no longer true, would still be counted as pending on top of it (rule 10). Once the ledger has the
// marker of a key, it has all that the key's home took before the key was spread. If it is too old, the window does
// not wait any more, and no later one does for these keys.
func (w *Worker) mustWait(ctx context.Context, n int, likes map[counter.Pair]shard.PendingLike, age time.Duration) (bool, error) {
	tooLong := age >= max(likesWait*w.cfg.Window, leastLikesWait)
	asked := make(map[int]bool)
	for pair := range likes {
		home := shard.Home(pair.Key, w.cfg.Shards)
		_, marked := w.marked.Load(pair.Key)
		switch {
		case home == n || marked:
			continue
		case tooLong:
			w.marked.Store(pair.Key, struct{}{})
			continue
		case asked[home]:
			return true, nil
		}
		asked[home] = true
		markers, err := w.ledger.Markers(ctx, home)
		if err != nil {
			return false, err
		}
		for key := range markers {
			w.marked.Store(key, struct{}{})
		}
		if _, marked := markers[pair.Key]; !marked {
			return true, nil
		}
	}
	return false, nil
}
