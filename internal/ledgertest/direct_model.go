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
	ids    map[counter.RequestID]uint64
	once   map[string]bool
}

func (m *model) apply(c counter.Change) flush.Verdict {
	if kept, known := m.ids[c.RequestID]; known {
		if kept != c.Fingerprint() {
			return flush.Verdict{Err: counter.ErrRequestIDReused}
		}
		return flush.Verdict{Outcome: counter.Duplicate}
	}
	if c.OncePer > 0 {
		claim := fmt.Sprint(c.Entries[0].Key, c.Actor, c.OncePer)
		if m.once[claim] {
			return flush.Verdict{Outcome: counter.AlreadyCounted}
		}
		m.once[claim] = true
	}
	if !c.RequestID.IsZero() {
		m.ids[c.RequestID] = c.Fingerprint()
	}
	for _, e := range c.Entries {
		m.totals[e.Key] += e.Delta
	}
	return flush.Verdict{Outcome: counter.Applied}
}

// randomOperations compares random groups of changes with the model. Periods are so long that they cannot
// end in between, except once in a week.
func randomOperations(t *testing.T, l DirectInstance) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{totals: make(map[string]int64), ids: make(map[counter.RequestID]uint64), once: make(map[string]bool)}
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
				if c.Value != m.totals[c.Key] {
					t.Errorf("count of %q is %d, want %d", c.Key, c.Value, m.totals[c.Key])
				}
			}
		}
	})
}

func drawChange(t *rapid.T, keys []string) counter.Change {
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
