package ledgertest

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
)

// model is what a ledger should do, for changes that neither overflow nor are refused for their age.
type model struct {
	totals map[string]int64
	likes  map[string]int64
	liked  map[counter.Pair]bool
	ids    map[counter.RequestID]modelID
	once   map[string]bool
}

// modelID is what is known of a request id.
type modelID struct {
	fingerprint uint64
	changed     bool
}

func (m *model) apply(c counter.Change) flush.Verdict {
	if kept, known := m.ids[c.RequestID]; known {
		if kept.fingerprint != c.Fingerprint(&counter.FingerprintKey{}) {
			return flush.Verdict{Err: counter.ErrRequestIDReused}
		}
		return flush.Verdict{Outcome: counter.Duplicate, Changed: kept.changed}
	}
	if c.OncePer > 0 {
		claim := fmt.Sprint(c.Entries[0].Key, c.Actor, c.OncePer)
		if m.once[claim] {
			return flush.Verdict{Outcome: counter.AlreadyCounted}
		}
		m.once[claim] = true
	}
	v := flush.Verdict{Outcome: counter.Applied}
	if c.Like != counter.NoLike {
		v.Changed = m.set(c.Pair(), c.Like == counter.SetLiked)
	}
	if !c.RequestID.IsZero() {
		m.ids[c.RequestID] = modelID{c.Fingerprint(&counter.FingerprintKey{}), v.Changed}
	}
	for _, e := range c.Entries {
		m.totals[e.Key] += e.Delta
	}
	return v
}

// set sets a pair and reports whether that changed it.
func (m *model) set(pair counter.Pair, liked bool) bool {
	if m.liked[pair] == liked {
		return false
	}
	m.liked[pair] = liked
	delta := int64(1)
	if !liked {
		delta = -1
	}
	m.totals[pair.Key] += delta
	m.likes[pair.Key] += delta
	return true
}

// randomOperations compares random groups of changes with the model. Periods are so long that they cannot
// end in between, except once in a week.
func randomOperations(t *testing.T, l DirectInstance) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			totals: make(map[string]int64), likes: make(map[string]int64), liked: make(map[counter.Pair]bool),
			ids: make(map[counter.RequestID]modelID), once: make(map[string]bool),
		}
		keys := []string{Key(), Key(), Key(), Key()}
		// An id stands for one payload in a group, or it would depend on chance which one is refused.
		ids := []counter.RequestID{V7(time.Now()), V7(time.Now()), Opaque(), Opaque(), Opaque()}
		for range rapid.IntRange(1, 4).Draw(t, "groups") {
			var group []counter.Change
			inGroup := make(map[counter.RequestID]counter.Change)
			for range rapid.IntRange(1, 12).Draw(t, "changes") {
				change := drawChange(t, keys)
				if rapid.Bool().Draw(t, "identified") {
					id := rapid.SampledFrom(ids).Draw(t, "id")
					if before, ok := inGroup[id]; ok {
						change = before
					}
					change.RequestID = id
					inGroup[id] = change
				}
				group = append(group, change)
			}
			ledger := []flush.DirectLedger{l, l.Other}[rapid.IntRange(0, 1).Draw(t, "handle")]
			verdicts, _, err := ledger.Commit(t.Context(), group)
			if err != nil {
				t.Fatalf("Commit: %v", err)
			}
			for i, change := range group {
				if want := m.apply(change); verdicts[i] != want {
					t.Errorf("change %d %+v: %+v, want %+v", i, change, verdicts[i], want)
				}
			}
			counts, err := l.Counts(t.Context(), keys)
			if err != nil {
				t.Fatalf("Counts: %v", err)
			}
			for _, c := range counts {
				if c.Value != m.totals[c.Key] || c.Likes != m.likes[c.Key] {
					t.Errorf("count of %q is %d, %d of it likes, want %d and %d", c.Key, c.Value, c.Likes, m.totals[c.Key], m.likes[c.Key])
				}
			}
			for pair, liked := range m.liked {
				if got, err := l.Likes(t.Context(), []counter.Pair{pair}); err != nil || got.States[0].Liked != liked {
					t.Errorf("%v: %+v, %v, want liked %v", pair, got.States, err, liked)
				}
			}
		}
	})
}

func drawChange(t *rapid.T, keys []string) counter.Change {
	if rapid.IntRange(0, 2).Draw(t, "like") == 0 {
		set := rapid.SampledFrom([]func(key, actor string) counter.Change{Like, Unlike}).Draw(t, "set")
		return set(rapid.SampledFrom(keys).Draw(t, "key"), rapid.SampledFrom([]string{"ann", "bob"}).Draw(t, "actor"))
	}
	delta := rapid.Int64Range(-1_000, 1_000).Filter(func(d int64) bool { return d != 0 })
	var change counter.Change
	for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, len(keys), rapid.ID[string]).Draw(t, "keys") {
		change.Entries = append(change.Entries, counter.Entry{Key: key, Delta: delta.Draw(t, "delta")})
	}
	if len(change.Entries) == 1 && rapid.Bool().Draw(t, "once") {
		change.Actor = rapid.SampledFrom([]string{"ann", "bob"}).Draw(t, "actor")
		change.OncePer = 7 * 24 * time.Hour
	}
	return change
}
