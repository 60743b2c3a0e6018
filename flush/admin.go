package flush

import (
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// What AdminService needs of a ledger that is changed directly, and (ForgetLikes, ForgetClaims) of any. Rows that are unliked
// are there so that a state that comes late from another shard is known to be older; where there is none to come, they may
// be forgotten.

// judge decides whether an id that was or was not counted before, with a fingerprint by the key, is repeated, by the ledger's
// clock.
func judge(c *counter.Change, now time.Time, dedupe time.Duration, known bool, fingerprint uint64, key *counter.FingerprintKey) (bool, error) {
	if err := c.RequestID.CheckAge(now.UnixMilli(), dedupe); err != nil {
		return false, err
	}
	if known && fingerprint != c.Fingerprint(key) {
		return false, counter.ErrRequestIDReused
	}
	return known, nil
}

// datedStates are likes as the states of a window, that are set only where they differ from what there is: the last of
// each pair.
func datedStates(likes []counter.DatedLike, now time.Time) map[counter.Pair]shard.PendingLike {
	states := make(map[counter.Pair]shard.PendingLike, len(likes))
	for _, like := range likes {
		micros := like.Micros
		if micros == 0 {
			micros = now.UnixMicro()
		}
		if earlier, there := states[like.Pair]; !there || earlier.Micros <= micros {
			states[like.Pair] = shard.PendingLike{Liked: like.Liked, Micros: micros, Since: micros - 1}
		}
	}
	return states
}

// sumOf adds up how many likes were changed, of which all went one way for each key.
func sumOf(added map[string]int64) (changed int) {
	for _, n := range added {
		changed += int(max(n, -n))
	}
	return changed
}
