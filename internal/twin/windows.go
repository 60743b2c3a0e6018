package twin

import (
	"context"

	"github.com/plusone-dev/plusone/shard"
)

// Windows are the ids of a shard's windows, open and sealed, oldest first.
func (r *Redis) Windows(n int) []int64 {
	_, unlock := r.lock()
	defer unlock()
	ids := make([]int64, len(r.shards[n].windows))
	for i, w := range r.shards[n].windows {
		ids[i] = w.id
	}
	return ids
}

// Pending implements shard.Scripts.
func (r *Redis) Pending(_ context.Context, n int) (shard.PendingWindows, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.shards[n]
	pending := shard.PendingWindows{Micros: r.now(), Likes: s.liked}
	if len(s.windows) > 0 {
		pending.Oldest, pending.Newest = s.windows[0].id, s.windows[len(s.windows)-1].id
	}
	return pending, nil
}
