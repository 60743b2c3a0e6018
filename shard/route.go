package shard

import (
	"encoding/binary"

	"github.com/plusone-dev/plusone/internal/counter"
)

// afterMarker is how long after a key's marker an id must be made, or a once-per period begin, to be routed
// away from the key's home. It exceeds counter.MaxEarly, by which an id may be ahead of the marker's clock:
// whatever can have been tried before the key was marked stays where it was tried.
const afterMarker = 60_000

// timedBucket is the length of the buckets of UUIDv7 request ids (TIMED_BUCKET in write.lua).
const timedBucket = 60_000

// part is what a change does under one set of claims, on one shard: it is counted whole or not at all.
type part struct {
	shard   int
	entries []counter.Entry
	// markers by position in entries; nil if none is declared.
	markers []Marker
	// spread is the marker by which a single entry was routed away from its home, 0 if it was not.
	spread Marker
	id     claim
	once   *claim // nil if there is none
	// Of a like: its state, as far as the sender knows it, and once the part is settled whether that was changed.
	known     KnownLike
	changed   bool
	overflows bool // it was refused, because the total could leave int64
	// outcome is 0 until the part is settled.
	outcome counter.Outcome
	// What a refusal said of the claims.
	refusal struct {
		id           string // value kept with a known id
		idKnown      bool
		onceKnown    bool
		idAged       bool
		periodIsPast bool
		lost         int64
	}
}

// claim is a claim of a part; the zero claim is none.
type claim struct {
	set     bool
	kind    ClaimKind
	current bool // ClaimOnce
	bucket  int64
	time    int64 // ClaimTimed
	period  int64 // ClaimOnce
	field   string
	value   string
}

// router decides where the entries of a change go. Every retry must meet its own claim, so it depends on
// nothing that changes between two tries (rule 9): the key, its marker, the id and its time, the actor and the
// period.
type router struct {
	shards  int
	markers *markers
	clock   *clock
	turn    func(width int) int // spreads changes that carry no claim
}

// route is where one entry goes.
type route struct {
	shard  int
	home   int
	marker Marker // of the key, if it is spread
}

// split routes entries of a change, more than one, and groups them into parts.
func (r *router) split(c *counter.Change, entries []counter.Entry, fingerprint string) []part {
	routes := make([]route, len(entries))
	at := make([]int, 2*r.shards) // by shard: how many entries go there, and of which part they are
	sizes, position := at[:r.shards], at[r.shards:]
	parts := 0
	for i := range entries {
		to := r.route(c, entries[i].Key, 0)
		routes[i] = to
		if r.isAlone(c, to) {
			parts++
			continue
		}
		if sizes[to.shard] == 0 {
			parts++
		}
		sizes[to.shard]++
	}
	split := make([]part, parts)[:0]
	room := make([]counter.Entry, len(entries))
	for i, to := range routes {
		if r.isAlone(c, to) {
			split = split[:len(split)+1]
			r.single(&split[len(split)-1], c, entries[i:i+1], fingerprint)
			continue
		}
		if sizes[to.shard] > 0 {
			n := sizes[to.shard]
			position[to.shard], sizes[to.shard] = len(split), 0
			split = append(split, part{shard: to.shard, id: idClaim(c, "", fingerprint), entries: room[:0:n]})
			room = room[n:]
		}
		p := &split[position[to.shard]]
		p.entries = append(p.entries, entries[i])
		p.declare(to)
	}
	return split
}

// isAlone reports whether an entry of a batch has a claim of its own: one away from home, since the set of such
// entries may look different to another server.
func (r *router) isAlone(c *counter.Change, to route) bool {
	return to.shard != to.home && !c.RequestID.IsZero()
}

// single routes a single entry of a change into p, which is zero.
func (r *router) single(p *part, c *counter.Change, entries []counter.Entry, fingerprint string) {
	var period int64
	if c.OncePer > 0 {
		p.once = r.onceClaim(c, entries[0].Key)
		period = p.once.bucket
	}
	to := r.route(c, entries[0].Key, period)
	p.shard, p.entries = to.shard, entries
	if to.shard == to.home {
		p.id = idClaim(c, "", fingerprint)
	} else {
		p.id, p.spread = idClaim(c, entries[0].Key, fingerprint), to.marker
	}
	p.declare(to)
}

// declare notes the marker of the entry that was added last.
func (p *part) declare(to route) {
	if p.markers == nil && (to.marker == 0 || to.shard != to.home) {
		return
	}
	for len(p.markers) < len(p.entries) {
		p.markers = append(p.markers, 0)
	}
	if to.shard == to.home {
		p.markers[len(p.entries)-1] = to.marker
	}
}

func (r *router) route(c *counter.Change, key string, period int64) route {
	to := route{home: Home(key, r.shards), marker: r.markers.get(key)}
	to.shard = to.home
	if to.marker == 0 {
		return to
	}
	made, timed := c.RequestID.Time()
	switch {
	case c.Like != counter.NoLike:
		to.shard = to.marker.place(to.home, c.Actor, r.shards)
	case c.OncePer > 0:
		if period > to.marker.Time()+afterMarker {
			to.shard = to.marker.place(to.home, c.Actor, r.shards)
		}
	case timed:
		if made > to.marker.Time()+afterMarker {
			to.shard = to.marker.place(to.home, c.RequestID.Bytes(), r.shards)
		}
	case c.RequestID.IsZero():
		to.shard = (to.home + r.turn(to.marker.Width(r.shards))) % r.shards
	}
	return to
}

// onceClaim is the once-per claim of a change. Its period is that of the request id, if the id has a time, so
// that a retry in the next period still meets its claim.
func (r *router) onceClaim(c *counter.Change, key string) *claim {
	made, timed := c.RequestID.Time()
	if !timed {
		made = r.clock.milliseconds()
	}
	return &claim{
		set: true, kind: ClaimOnce, bucket: counter.PeriodStart(made, c.OncePer), period: c.OncePer.Milliseconds(),
		current: !timed, field: key + "\x00" + c.Actor,
	}
}

// idClaim is the claim of a change's request id. Away names the key of an entry that is routed away from its
// home.
func idClaim(c *counter.Change, away, fingerprint string) claim {
	if c.RequestID.IsZero() {
		return claim{}
	}
	cl := claim{set: true, kind: ClaimOpaque, field: c.RequestID.Bytes(), value: fingerprint}
	if made, timed := c.RequestID.Time(); timed {
		cl.kind, cl.time, cl.bucket = ClaimTimed, made, made-made%timedBucket
	}
	if away != "" {
		cl.field = c.RequestID.Away(away).Bytes()
	}
	return cl
}

// repeated reports whether the value kept with a request id is that of this claim, and for a like what became of it
// then (LikeWrite).
func (c *claim) repeated(kept string, like counter.LikeAction) (changed, same bool) {
	if like != counter.NoLike && kept != "" {
		changed, kept = LikeResult(kept[len(kept)-1]) == LikeChanged, kept[:len(kept)-1]
	}
	return changed, kept == c.value
}

// fingerprintOf is what is kept with a request id, to notice its reuse.
func fingerprintOf(c *counter.Change, key *counter.FingerprintKey) string {
	if c.RequestID.IsZero() {
		return ""
	}
	var bytes [8]byte
	binary.LittleEndian.PutUint64(bytes[:], c.Fingerprint(key))
	return string(bytes[:])
}
