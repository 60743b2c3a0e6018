package shard

import (
	"context"
	"sync"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// likesAtOnce is how many likes SetLikes has under way. They share questions to the ledger and scripts.
const likesAtOnce = 512

// SetLikes sets likes, each as of its moment, and returns how many of them that changed. After an error some may have
// been set; to set them again changes nothing. AsOf is a moment from which every read shows them.
func (s *Store) SetLikes(ctx context.Context, likes []counter.DatedLike) (changed int, asOf time.Time, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // guards the results and left
	left := likes
	next := func() (like counter.DatedLike, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(left) == 0 || err != nil {
			return counter.DatedLike{}, false
		}
		like, left = left[0], left[1:]
		return like, true
	}
	var setting sync.WaitGroup
	for range min(likesAtOnce, len(likes)) {
		setting.Go(func() {
			for like, ok := next(); ok; like, ok = next() {
				receipt, failure := s.Apply(ctx, like.Change())
				mu.Lock()
				switch {
				case failure != nil && err == nil:
					err = failure
					cancel(failure)
				case failure == nil:
					if receipt.Changed {
						changed++
					}
					if receipt.AsOf.After(asOf) {
						asOf = receipt.AsOf
					}
				}
				mu.Unlock()
			}
		})
	}
	setting.Wait()
	return changed, asOf, err
}
