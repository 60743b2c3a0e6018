package history

import "time"

// sums are what is known of the increments of a key.
type sums struct {
	// Positive and negative deltas that may have been counted.
	issuedUp, issuedDown int64
	// Those of them that were acknowledged and cannot have been lost.
	ackedUp, ackedDown int64
}

// acked is what a read must show.
type acked struct{ up, down int64 }

func (s *sums) acked() acked { return acked{s.ackedUp, s.ackedDown} }

// within reports whether a count was possible since what had been acknowledged then.
func (s *sums) within(count int64, then acked) bool {
	return count >= then.up+s.issuedDown && count <= s.issuedUp+then.down
}

// keyState is what is known of a key.
type keyState struct {
	sums
	floor, snapshot acked
	// durable is what was last seen in the durable totals: to be found there whatever the live store loses.
	durable int64
	// raise is what must be there in addition, once a rollback is settled.
	raise int64
	// everLiked is how many pairs may ever have been liked. The others are of likes now, see pairState.
	everLiked               int64
	surelyLiked, maybeLiked int64
	// How often a pair ceased to be surely liked, and became maybe liked.
	lessSure, moreMaybe int64
}

func (k *keyState) issue(delta int64) {
	if delta > 0 {
		k.issuedUp += delta
	} else {
		k.issuedDown += delta
	}
}

// unissue undoes issue.
func (k *keyState) unissue(delta int64) {
	if delta > 0 {
		k.issuedUp -= delta
	} else {
		k.issuedDown -= delta
	}
}

func (k *keyState) acknowledge(delta int64) {
	if delta > 0 {
		k.ackedUp += delta
	} else {
		k.ackedDown += delta
	}
}

// rollback forgets what was acknowledged since the snapshot. What was seen to be durable is only back in reads once
// the rollback was noticed.
func (k *keyState) rollback() {
	k.ackedUp, k.ackedDown = k.snapshot.up, k.snapshot.down
	k.raise = 0
	if k.issuedDown == 0 { // else a total says nothing of the positive deltas in it
		k.raise = max(0, k.durable-k.ackedUp)
	}
}

func (k *keyState) settle() {
	k.ackedUp += k.raise
	k.raise = 0
}

// reference is what was known of a key when a call began.
type reference struct {
	acked
	surelyLiked, maybeLiked, lessSure, moreMaybe int64
}

func (k *keyState) reference() reference {
	return reference{k.acked(), k.surelyLiked, k.maybeLiked, k.lessSure, k.moreMaybe}
}

// likesBounds are the fewest and the most likes that there may have been since the reference.
func (k *keyState) likesBounds(r reference) (low, high int64) {
	return r.surelyLiked - (k.lessSure - r.lessSure), r.maybeLiked + (k.moreMaybe - r.moreMaybe)
}

const (
	sampleInterval = time.Second
	// sampleCount bounds the age of answers that can be checked.
	sampleCount = 16
)

// samples are what was acknowledged in the last seconds, for reads that may be old.
type samples struct {
	ring [sampleCount]sample
	next int
}

type sample struct {
	at    time.Duration
	acked []acked
}

// take notes the sums once a second.
func (s *samples) take(now time.Duration, keys []keyState) {
	newest := &s.ring[(s.next+sampleCount-1)%sampleCount]
	if newest.acked != nil && now-newest.at < sampleInterval {
		return
	}
	at := &s.ring[s.next]
	s.next = (s.next + 1) % sampleCount
	at.at = now
	if at.acked == nil {
		at.acked = make([]acked, len(keys))
	}
	for i := range keys {
		at.acked[i] = keys[i].acked()
	}
}

// before returns what was acknowledged at a time or somewhat before it; nil if that is too long ago.
func (s *samples) before(at time.Duration) []acked {
	for i := range sampleCount {
		// From the newest to the oldest.
		sample := &s.ring[(s.next+2*sampleCount-1-i)%sampleCount]
		if sample.acked != nil && sample.at <= at {
			return sample.acked
		}
	}
	return nil
}
