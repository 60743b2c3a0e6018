package flush

import (
	"cmp"
	"slices"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// claimMargin is how much longer claims are kept than any request can meet them: it covers the time between
// judging the age of an id and looking for its claim, and small steps of the ledger's clock.
const claimMargin = time.Minute

// claimID is a request id as ledgers keep it: a byte for its kind, then its bytes. The zero value means
// that the change has none.
type claimID string

func newClaimID(id counter.RequestID) claimID {
	if id.IsZero() {
		return ""
	}
	if _, timed := id.Time(); timed {
		return claimID("\x07" + id.Bytes())
	}
	return claimID("\x00" + id.Bytes())
}

// onceClaim is an actor's claim to a key for a period; period and start are in ms. The zero value means
// that the change makes none.
type onceClaim struct {
	key, actor    string
	period, start int64
}

// expires is when no accepted request can meet the claim any more, in Unix ms.
func (c onceClaim) expires(dedupe time.Duration) int64 {
	return c.start + c.period + (dedupe + counter.MaxEarly + claimMargin).Milliseconds()
}

func compareOnceClaims(a, b onceClaim) int {
	return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.actor, b.actor), cmp.Compare(a.period, b.period), cmp.Compare(a.start, b.start))
}

// group is the changes of one Commit on their way to verdicts. It holds what does not depend on the
// database, so that all ledgers decide alike.
type group struct {
	dedupe  time.Duration
	changes []counter.Change
	ids     []claimID // by change
	once    []onceClaim
	refused []error  // by change: what the clock says about its id
	prints  []uint64 // by change: its fingerprint, if it has an id
	// fingerprints of the ids, each that of the first change that has it.
	fingerprints map[claimID]uint64
	hasOnce      bool
}

func newGroup(changes []counter.Change, dedupe time.Duration) *group {
	n := len(changes)
	g := &group{
		dedupe: dedupe, changes: changes,
		ids: make([]claimID, n), once: make([]onceClaim, n), refused: make([]error, n), prints: make([]uint64, n),
		fingerprints: make(map[claimID]uint64),
	}
	for i, c := range changes {
		g.hasOnce = g.hasOnce || c.OncePer > 0
		g.ids[i] = newClaimID(c.RequestID)
		if g.ids[i] == "" {
			continue
		}
		g.prints[i] = c.Fingerprint()
		if _, ok := g.fingerprints[g.ids[i]]; !ok {
			g.fingerprints[g.ids[i]] = g.prints[i]
		}
	}
	return g
}

// setTime judges the ages of the ids and settles the once-per periods by the ledger's clock, in Unix ms.
func (g *group) setTime(now int64) {
	for i, c := range g.changes {
		at, timed := c.RequestID.Time()
		g.refused[i], g.once[i] = nil, onceClaim{}
		switch {
		case timed && at < now-g.dedupe.Milliseconds():
			g.refused[i] = counter.ErrRequestIDExpired
			continue
		case timed && at > now+counter.MaxEarly.Milliseconds():
			g.refused[i] = counter.ErrRequestIDEarly
			continue
		}
		if c.OncePer > 0 {
			if !timed {
				at = now
			}
			g.once[i] = onceClaim{key: c.Entries[0].Key, actor: c.Actor, period: c.OncePer.Milliseconds(), start: counter.PeriodStart(at, c.OncePer)}
		}
	}
}

// claimIDs returns the distinct ids of the group in ascending order, which is the order in which every
// ledger takes them: two servers with the same ids cannot deadlock.
func (g *group) claimIDs() []claimID {
	ids := make([]claimID, 0, len(g.fingerprints))
	for id := range g.fingerprints {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// onceClaims returns the distinct once-per claims, in ascending order, of the changes that are neither
// refused for their age nor have a known id.
func (g *group) onceClaims(known map[claimID]uint64) []onceClaim {
	var claims []onceClaim
	for i, claim := range g.once {
		if _, ok := known[g.ids[i]]; ok || claim == (onceClaim{}) {
			continue
		}
		claims = append(claims, claim)
	}
	slices.SortFunc(claims, compareOnceClaims)
	return slices.Compact(claims)
}

// keys returns the distinct keys of the group in ascending order.
func (g *group) keys() []string {
	seen := make(map[string]struct{}, len(g.changes))
	for _, c := range g.changes {
		for _, e := range c.Entries {
			seen[e.Key] = struct{}{}
		}
	}
	keys := make([]string, 0, len(seen))
	for key := range seen {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// standing is what a ledger holds that matters to a group.
type standing struct {
	// ids that were counted before, with their fingerprints.
	ids map[claimID]uint64
	// once are the once-per claims that were taken before.
	once map[onceClaim]struct{}
	// totals and history are what the keys stand at and what their current buckets hold. Nil means that the
	// database itself refuses what overflows. decide moves them on.
	totals, history map[string]int64
}

// decision is what to write.
type decision struct {
	verdicts []Verdict
	// ids and once are the claims of the changes that are applied.
	ids  map[claimID]struct{}
	once map[onceClaim]struct{}
	sums sums
}

// decide settles the changes one after the other. Only an applied change leaves claims: one that was
// refused, or whose actor had been counted, can be repeated with its id as if it had never been made.
func (g *group) decide(s standing) decision {
	d := decision{
		verdicts: make([]Verdict, len(g.changes)),
		ids:      make(map[claimID]struct{}, len(g.fingerprints)),
		once:     make(map[onceClaim]struct{}),
	}
	for i, c := range g.changes {
		d.verdicts[i] = g.decideOne(i, s, d)
		if d.verdicts[i].Outcome != counter.Applied {
			continue
		}
		if g.ids[i] != "" {
			d.ids[g.ids[i]] = struct{}{}
		}
		if g.once[i] != (onceClaim{}) {
			d.once[g.once[i]] = struct{}{}
		}
		for _, e := range c.Entries {
			d.sums.add(e)
		}
	}
	return d
}

func (g *group) decideOne(i int, s standing, d decision) Verdict {
	if err := g.refused[i]; err != nil {
		return Verdict{Err: err}
	}
	if id := g.ids[i]; id != "" {
		kept, known := s.ids[id]
		if !known {
			kept = g.fingerprints[id]
			_, known = d.ids[id]
		}
		if kept != g.prints[i] {
			return Verdict{Err: counter.ErrRequestIDReused}
		}
		if known {
			return Verdict{Outcome: counter.Duplicate}
		}
	}
	if once := g.once[i]; once != (onceClaim{}) {
		_, before := s.once[once]
		_, inGroup := d.once[once]
		if before || inGroup {
			return Verdict{Outcome: counter.AlreadyCounted}
		}
	}
	if !addAll(s.totals, s.history, g.changes[i].Entries) {
		return Verdict{Err: counter.ErrOverflow}
	}
	return Verdict{Outcome: counter.Applied}
}

// addAll adds entries to totals and to history, either of which may be nil. If one sum would leave the
// range of int64 it changes nothing and returns false.
func addAll(totals, history map[string]int64, entries []counter.Entry) bool {
	for _, balances := range []map[string]int64{totals, history} {
		if balances == nil {
			continue
		}
		for _, e := range entries {
			if _, ok := counter.Add(balances[e.Key], e.Delta); !ok {
				return false
			}
		}
	}
	for _, balances := range []map[string]int64{totals, history} {
		if balances == nil {
			continue
		}
		for _, e := range entries {
			balances[e.Key] += e.Delta
		}
	}
	return true
}

// sums merges entries per key. A key whose sum leaves the range of int64 has several, to be added in the
// order of rounds; the totals in between are ones that the single changes would have led to.
type sums struct {
	rounds []map[string]int64
	// last is the round that a key has reached, if not the first.
	last map[string]int
}

func (s *sums) add(e counter.Entry) {
	at := s.last[e.Key]
	if len(s.rounds) == at {
		s.rounds = append(s.rounds, make(map[string]int64))
	}
	sum, ok := counter.Add(s.rounds[at][e.Key], e.Delta)
	if ok {
		s.rounds[at][e.Key] = sum
		return
	}
	if s.last == nil {
		s.last = make(map[string]int)
	}
	s.last[e.Key] = at + 1
	s.add(e)
}

// deltas are keys in ascending order and what to add to each.
type deltas struct {
	keys   []string
	values []int64
}

// sorted returns the rounds in key order, which is the order in which every ledger locks rows.
func (s *sums) sorted() []deltas {
	rounds := make([]deltas, len(s.rounds))
	for i, round := range s.rounds {
		rounds[i] = sortDeltas(round)
	}
	return rounds
}

// sortDeltas leaves out keys with nothing to add.
func sortDeltas(sums map[string]int64) deltas {
	d := deltas{keys: make([]string, 0, len(sums)), values: make([]int64, 0, len(sums))}
	for key, delta := range sums {
		if delta != 0 {
			d.keys = append(d.keys, key)
		}
	}
	slices.Sort(d.keys)
	for _, key := range d.keys {
		d.values = append(d.values, sums[key])
	}
	return d
}
