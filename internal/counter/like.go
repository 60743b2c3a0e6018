package counter

import "time"

// LikeAction is what a change does to an actor's like of a key.
type LikeAction uint8

// The actions. A like is a state, one per key and actor: to set it again changes nothing.
const (
	// NoLike: the change is an increment.
	NoLike LikeAction = iota
	// SetLiked: the actor likes the key.
	SetLiked
	// SetUnliked: the actor does not like the key any more.
	SetUnliked
)

// Pair names an actor's like of a key.
type Pair struct{ Key, Actor string }

// LikeState is what a like stands at; the zero LikeState is that of a pair that was never liked.
type LikeState struct {
	Liked bool
	// At is since when, in whole microseconds of the store's clock.
	At time.Time
}

// Liked is a like in a list.
type Liked struct {
	Pair
	At time.Time
}

// LikeCursor is a place in a list of likes, newest first: right behind the like that it names. The zero
// LikeCursor is the beginning.
type LikeCursor struct {
	At time.Time
	// Name is the actor in a list of a key's likers, the key in a list of what an actor likes.
	Name string
}

// MaxListed is how many likes a page of a list may have.
const MaxListed = 1_000
