package twin

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
