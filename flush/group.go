package flush

import (
	"cmp"
	"maps"
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
	hasLikes     bool
	hasResets    bool
	// overflowing are likes that were found to overflow, and are left out from then on.
	overflowing map[int]struct{}
}

func newGroup(changes []counter.Change, dedupe time.Duration, key *counter.FingerprintKey) *group {
	n := len(changes)
	g := &group{
		dedupe: dedupe, changes: changes,
		ids: make([]claimID, n), once: make([]onceClaim, n), refused: make([]error, n), prints: make([]uint64, n),
		fingerprints: make(map[claimID]uint64),
	}
	for i, c := range changes {
		g.hasOnce = g.hasOnce || c.OncePer > 0
		g.hasResets = g.hasResets || c.Reset
		g.hasLikes = g.hasLikes || c.Like != counter.NoLike
		g.ids[i] = newClaimID(c.RequestID)
		if g.ids[i] == "" {
			continue
		}
		g.prints[i] = c.Fingerprint(key)
		if _, ok := g.fingerprints[g.ids[i]]; !ok {
			g.fingerprints[g.ids[i]] = g.prints[i]
		}
	}
	return g
}

// forgotten is up to where claims have been forgotten, in Unix ms, where the clock that judges ids may be set back: whether
// what is no younger was counted before is not known. Its zero value forgets nothing.
type forgotten struct {
	ids  int64 // the time of the youngest UUIDv7
	once int64 // the last end of a once-per claim
}

// checkAge judges an id at the moment wall, in Unix ms.
func (f forgotten) checkAge(id counter.RequestID, wall int64, dedupe time.Duration) error {
	if made, timed := id.Time(); timed && made <= f.ids {
		return counter.ErrRequestIDExpired
	}
	return id.CheckAge(wall, dedupe)
}

// setTime judges the ages of the ids by the clock wall, and settles the once-per periods by the ledger's clock, which shows
// now: both in Unix ms, and one clock unless that of the wall may be set back.
func (g *group) setTime(now, wall int64, gone forgotten) {
	for i, c := range g.changes {
		g.refused[i], g.once[i] = gone.checkAge(c.RequestID, wall, g.dedupe), onceClaim{}
		if g.refused[i] != nil || c.OncePer == 0 {
			continue
		}
		at, timed := c.RequestID.Time()
		if !timed {
			at = now
		}
		once := onceClaim{key: c.Entries[0].Key, actor: c.Actor, period: c.OncePer.Milliseconds(), start: counter.PeriodStart(at, c.OncePer)}
		if once.expires(g.dedupe) <= gone.once {
			g.refused[i] = counter.ErrRequestIDExpired
			continue
		}
		g.once[i] = once
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
func (g *group) onceClaims(known map[claimID]keptID) []onceClaim {
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
	// ids that were counted before.
	ids map[claimID]keptID
	// once are the once-per claims that were taken before.
	once map[onceClaim]struct{}
	// liked are the pairs of the group that were liked before it. decide moves them on.
	liked map[counter.Pair]bool
	// balances has what is held of each key of the group. Nil means that the database itself refuses what overflows, and
	// that the group has no resets. decide moves them on, but for their likes.
	balances map[string]*balance
	// buckets says that the balances have their buckets of history, which must not overflow either.
	buckets bool
	// moved are the keys whose balances have another bucket than their rows.
	moved map[string]movedBucket
}

// balance is what a ledger holds of a key. Postgres has use only for the total and likes, and only at times.
type balance struct {
	total int64
	// likes is the part of the total that comes from likes, before that which was added without a history.
	likes, before int64
	// history is the sum of the bucket that starts at the moment bucket, in Unix ms, or noBucket and 0.
	bucket, history int64
	// unkept says that what is added now has no history.
	unkept bool
}

// part is what moves with the total.
func (b *balance) part() *int64 {
	if b.unkept {
		return &b.before
	}
	return &b.history
}

// move adds to both, of which the part may wrap around where buckets do not matter.
func (b *balance) move(delta int64) {
	b.total += delta
	*b.part() += delta
}

// keptID is what is kept with a request id.
type keptID struct {
	fingerprint uint64
	changed     bool // of a like: whether it changed anything
}

// decision is what to write.
type decision struct {
	verdicts []Verdict
	// applied says that there is a change that was applied.
	applied bool
	// ids and once are the claims of the changes that are applied, ids with whether a like changed anything.
	ids  map[claimID]bool
	once map[onceClaim]struct{}
	sums sums
	// likes is the part of the sums that comes from likes.
	likes map[string]int64
}

// decide settles the changes one after the other. Only an applied change leaves claims: one that was
// refused, or whose actor had been counted, can be repeated with its id as if it had never been made.
func (g *group) decide(s *standing) decision {
	d := decision{
		verdicts: make([]Verdict, len(g.changes)),
		ids:      make(map[claimID]bool, len(g.fingerprints)),
		once:     make(map[onceClaim]struct{}),
		likes:    make(map[string]int64),
	}
	for i, c := range g.changes {
		entries := g.entries(i, s, &d)
		d.verdicts[i] = g.decideOne(i, s, &d, entries)
		if d.verdicts[i].Outcome != counter.Applied {
			continue
		}
		d.applied = true
		if c.Like != counter.NoLike {
			d.verdicts[i].Changed = entries[0].Delta != 0
			s.liked[c.Pair()] = c.Like == counter.SetLiked
			d.likes[entries[0].Key] += entries[0].Delta
		}
		if g.ids[i] != "" {
			d.ids[g.ids[i]] = d.verdicts[i].Changed
		}
		if g.once[i] != (onceClaim{}) {
			d.once[g.once[i]] = struct{}{}
		}
		for _, e := range entries {
			if e.Delta != 0 {
				d.sums.add(e)
			}
		}
	}
	return d
}

// entries are what a change adds. A like adds what it changes, and a reset takes away what all increments before it have
// added.
func (g *group) entries(i int, s *standing, d *decision) []counter.Entry {
	c := &g.changes[i]
	switch wanted := c.Like == counter.SetLiked; {
	case c.Reset:
		key := c.Entries[0].Key
		b := s.balances[key]
		// Halves, as the sum of the increments may be out of the range of int64 a little.
		half := b.total / 2
		return []counter.Entry{{Key: key, Delta: -half}, {Key: key, Delta: b.likes + d.likes[key] - (b.total - half)}}
	case c.Like == counter.NoLike || s.liked[c.Pair()] == wanted:
		return c.Entries
	case wanted:
		return []counter.Entry{{Key: c.Entries[0].Key, Delta: 1}}
	default:
		return []counter.Entry{{Key: c.Entries[0].Key, Delta: -1}}
	}
}

func (g *group) decideOne(i int, s *standing, d *decision, entries []counter.Entry) Verdict {
	if verdict, settled := g.decideByID(i, s, d.ids); settled {
		return verdict
	}
	if once := g.once[i]; once != (onceClaim{}) {
		_, before := s.once[once]
		_, inGroup := d.once[once]
		if before || inGroup {
			return Verdict{Outcome: counter.AlreadyCounted}
		}
	}
	if _, overflows := g.overflowing[i]; overflows || !s.addAll(entries) {
		return Verdict{Err: counter.ErrOverflow}
	}
	return Verdict{Outcome: counter.Applied}
}

// decideByID settles a change whose id is too old or too early, or is known: from before, or by a change of the
// group that was applied.
func (g *group) decideByID(i int, s *standing, applied map[claimID]bool) (v Verdict, settled bool) {
	if err := g.refused[i]; err != nil {
		return Verdict{Err: err}, true
	}
	id := g.ids[i]
	if id == "" {
		return Verdict{}, false
	}
	kept, known := s.ids[id]
	if !known {
		kept.fingerprint = g.fingerprints[id]
		kept.changed, known = applied[id]
	}
	switch {
	case kept.fingerprint != g.prints[i]:
		return Verdict{Err: counter.ErrRequestIDReused}, true
	case known:
		return Verdict{Outcome: counter.Duplicate, Changed: kept.changed && g.changes[i].Like != counter.NoLike}, true
	}
	return Verdict{}, false
}

// pairStates are pairs in ascending order and what they are set to.
type pairStates struct {
	keys, actors []string
	liked        []bool
}

// finalLikes are the states that the group leaves its pairs in. They follow from the ids alone: a like that these
// do not settle is applied, whatever it finds.
func (g *group) finalLikes(s *standing) pairStates {
	applied, final := make(map[claimID]bool), make(map[counter.Pair]bool)
	for i, c := range g.changes {
		_, overflows := g.overflowing[i]
		_, settled := g.decideByID(i, s, applied)
		if c.Like == counter.NoLike || overflows || settled {
			continue
		}
		if g.ids[i] != "" {
			applied[g.ids[i]] = true
		}
		final[c.Pair()] = c.Like == counter.SetLiked
	}
	var states pairStates
	for _, pair := range slices.SortedFunc(maps.Keys(final), comparePairs) {
		states.keys, states.actors = append(states.keys, pair.Key), append(states.actors, pair.Actor)
		states.liked = append(states.liked, final[pair])
	}
	return states
}

// comparePairs gives the order in which every ledger locks pairs.
func comparePairs(a, b counter.Pair) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Actor, b.Actor))
}

// addAll adds entries to the balances, if there are any. If one sum would leave the range of int64 it changes nothing
// and returns false.
func (s *standing) addAll(entries []counter.Entry) bool {
	if s.balances == nil {
		return true
	}
	for i, e := range entries { // of which a reset has two for its key
		b := s.balances[e.Key]
		_, ok := counter.Add(b.total, e.Delta)
		_, fits := counter.Add(*b.part(), e.Delta)
		if !ok || s.buckets && !fits {
			for _, added := range entries[:i] {
				s.balances[added.Key].move(-added.Delta)
			}
			return false
		}
		b.move(e.Delta)
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
	// likes is the part of the values that comes from likes, nil if there is none.
	likes []int64
}

// sorted returns the rounds in key order, which is the order in which every ledger locks rows.
func (d *decision) sorted() []deltas {
	rounds := make([]deltas, len(d.sums.rounds))
	for i, round := range d.sums.rounds {
		likes := d.likes
		if i > 0 {
			likes = nil
		}
		rounds[i] = sortDeltas(round, likes)
	}
	return rounds
}

// sortDeltas leaves out keys with nothing to add. Every key of likes is in sums.
func sortDeltas(sums, likes map[string]int64) deltas {
	d := deltas{keys: make([]string, 0, len(sums)), values: make([]int64, 0, len(sums))}
	for key, delta := range sums {
		if delta != 0 || likes[key] != 0 {
			d.keys = append(d.keys, key)
		}
	}
	slices.Sort(d.keys)
	for _, key := range d.keys {
		d.values = append(d.values, sums[key])
	}
	if len(likes) > 0 {
		for _, key := range d.keys {
			d.likes = append(d.likes, likes[key])
		}
	}
	return d
}

// first splits off the first n rows.
func (d deltas) first(n int) (head, rest deltas) {
	n = min(n, len(d.keys))
	head = deltas{keys: d.keys[:n], values: d.values[:n]}
	rest = deltas{keys: d.keys[n:], values: d.values[n:]}
	if d.likes != nil {
		head.likes, rest.likes = d.likes[:n], d.likes[n:]
	}
	return head, rest
}
