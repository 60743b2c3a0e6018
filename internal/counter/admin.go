package counter

import "time"

// DatedLike is a like to be set as of a moment.
type DatedLike struct {
	Pair
	Liked bool
	// Micros is the moment, in Unix microseconds; 0 is now. Nothing changes if the like was last set then or later.
	Micros int64
}

// Change is the change that sets the like.
func (l *DatedLike) Change() Change {
	c := Change{Entries: []Entry{{Key: l.Key}}, Actor: l.Actor, Like: SetUnliked, SetAt: l.Micros}
	if l.Liked {
		c.Like = SetLiked
	}
	return c
}

// Mark is a place in the order of changes. All likes that were acknowledged before it was taken are before it.
type Mark struct {
	// Now is when it was taken, by the store's clock: no like that was acknowledged before is of a later moment.
	Now time.Time
	// Windows is, by shard, the last window that may have a like from before it, 0 for none. It is nil where there are
	// no windows.
	Windows []int64
}
