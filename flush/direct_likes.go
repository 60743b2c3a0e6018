package flush

import (
	"context"
	"fmt"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// pendingLikes is a look-up of likes on its way through the queue.
type pendingLikes struct {
	pairs  []counter.Pair
	done   chan struct{} // closed when states or err are set
	states []counter.LikeState
	err    error
}

// Likes returns which of the keys an actor likes, in their order, as of a moment after the call began. If one
// cannot be told, none is. Calls that wait for the one under way share the next.
func (d *Direct) Likes(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	p := &pendingLikes{pairs: make([]counter.Pair, len(keys)), done: make(chan struct{})}
	for i, key := range keys {
		p.pairs[i] = counter.Pair{Key: key, Actor: actor}
	}
	if err := d.likes.Add(p); err != nil {
		return nil, queueError(err)
	}
	if left := deadline.Wait(ctx, p.done); left != nil {
		return nil, fmt.Errorf("%w: %w", counter.ErrUnavailable, left)
	}
	return p.states, p.err
}

// likesGroup answers a batch of look-ups with one read.
func (d *Direct) likesGroup(ctx context.Context, batch []*pendingLikes) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	var pairs []counter.Pair
	for _, p := range batch {
		pairs = append(pairs, p.pairs...)
	}
	likes, err := d.ledger.Likes(ctx, pairs)
	if err == nil && len(likes.States) != len(pairs) {
		err = fmt.Errorf("the ledger answered %d look-ups of likes with %d states", len(pairs), len(likes.States))
	}
	left := likes.States
	for _, p := range batch {
		if p.err = err; err == nil {
			n := len(p.pairs)
			p.states, left = left[:n:n], left[n:]
		}
		close(p.done)
	}
}
