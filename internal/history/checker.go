package history

import (
	"fmt"
	"time"
)

const (
	// dedupeMargin is by how much it is uncertain when a request id expires: it is made before the call, and clients
	// and servers have clocks of their own.
	dedupeMargin = 10 * time.Second
	// maxKept is how many violations are kept; all are counted.
	maxKept = 20
)

// Config says what a history is about.
type Config struct {
	// Keys are the names of the counters, which events name by index.
	Keys []string
	// Dedupe is how long the service remembers request ids.
	Dedupe time.Duration
}

// Checker follows a history and notes what breaks a promise. It is not safe for concurrent use.
type Checker struct {
	cfg   Config
	keys  []keyState
	pairs map[pair]*pairState
	// open are calls under way, and changes in doubt.
	open map[uint64]*call
	// last is the last acknowledged change of a client.
	last    map[uint32]*call
	samples samples
	finals  finals

	now time.Duration
	// epoch counts rollbacks. Restoring is from Rollback to Restored, unsettled until Settle.
	epoch      int
	rolledBack time.Duration // when the last one was settled
	restoring  bool
	unsettled  bool
	// disturbed counts transitions to unsettled, so that a call can tell whether there was one in it.
	disturbed int
	// reverting: a rollback was not settled yet.
	reverting bool
	remember  bool // a Snapshot was taken: superseded likes are remembered

	stats      Stats
	violations []Violation
}

// call is a change or a read on its way.
type call struct {
	event    Event // of its begin
	begun    time.Duration
	epoch    int
	repeated bool
	// doubted: an answer was InDoubt, so that a refusal settles nothing.
	doubted bool
	acked   bool
	// crossing: it was under way during a rollback, which may have taken its effect back.
	crossing bool
	// reverted: it began between a rollback and its being settled, so its id may be from before that was noticed.
	reverted  bool
	disturbed int
	unsettled bool
	refs      []reference
	states    []stateReference
	write     *write
	known     *bool // the state that a like meets, if that is certain
}

// NewChecker makes a checker of a history that is about to begin.
func NewChecker(cfg Config) *Checker {
	return &Checker{
		cfg: cfg, keys: make([]keyState, len(cfg.Keys)), pairs: make(map[pair]*pairState),
		open: make(map[uint64]*call), last: make(map[uint32]*call), finals: newFinals(),
	}
}

// Apply follows one event. An event that makes no sense is a defect of who recorded it, and is noted as well.
func (c *Checker) Apply(e *Event) {
	c.now = e.At
	c.samples.take(c.now, c.keys)
	switch e.Kind {
	case Change, Forbidden:
		c.change(e)
	case Repeat:
		c.repeat(e)
	case Answer:
		c.answer(e)
	case Read, ReadLikes:
		c.read(e)
	case ReadAnswer:
		c.readAnswer(e)
	case ReadLikesAnswer:
		c.readLikesAnswer(e)
	case Observe:
		c.observe(e)
	case ObserveLikes:
		c.observeLikes(e)
	default:
		c.fault(e)
	}
}

func (c *Checker) violate(promise int, format string, args ...any) {
	c.stats.Violations++
	if len(c.violations) < maxKept {
		c.violations = append(c.violations, Violation{At: c.now, Promise: promise, Text: fmt.Sprintf(format, args...)})
	}
}

// Violations are the first violations that were found.
func (c *Checker) Violations() []Violation { return c.violations }

// InDoubt is how many changes are still in doubt or under way.
func (c *Checker) InDoubt() int {
	n := 0
	for _, o := range c.open {
		if o.event.Kind == Change {
			n++
		}
	}
	return n
}

func (c *Checker) change(e *Event) {
	o := &call{event: *e, begun: c.now, epoch: c.epoch, crossing: c.restoring, reverted: c.reverting, disturbed: c.disturbed, unsettled: c.unsettled}
	if c.open[e.Op] != nil {
		c.violate(0, "history: op %d began twice", e.Op)
		return
	}
	c.open[e.Op] = o
	if e.Kind == Forbidden {
		return
	}
	for _, entry := range e.Entries {
		c.keys[entry.Key].issue(entry.Delta)
	}
	switch {
	case e.Like != nil:
		o.refs = []reference{c.keys[e.Like.Key].reference()}
		c.beginLike(o)
	case len(e.Entries) == 1:
		o.refs = []reference{c.keys[e.Entries[0].Key].reference()}
	}
}

func (c *Checker) repeat(e *Event) {
	c.stats.Repeats++
	o := c.open[e.Op]
	if o == nil {
		if o = c.last[e.Client]; o == nil || o.event.Op != e.Op {
			c.violate(0, "history: op %d is repeated and unknown", e.Op)
			return
		}
		c.open[e.Op] = o
		if c.lossy(o) {
			c.issueAgain(o)
		}
	}
	o.repeated = true
	// What it meets now is not what it met first.
	o.known = nil
}

// issueAgain is for the documented exception: a change that was drained before a rollback may be counted again by a
// retry, until the rollback is noticed.
func (c *Checker) issueAgain(o *call) {
	for _, entry := range o.event.Entries {
		c.keys[entry.Key].issue(entry.Delta)
	}
}

// answer settles a change.
func (c *Checker) answer(e *Event) {
	o := c.open[e.Op]
	if o == nil {
		c.violate(0, "history: op %d was answered and is unknown", e.Op)
		return
	}
	if o.event.Kind == Forbidden {
		delete(c.open, e.Op)
		if e.Outcome == Applied || e.Outcome == Duplicate {
			c.violate(2, "op %d had to be refused, and was counted", e.Op)
		}
		return
	}
	if o.acked {
		c.repeatedAnswer(o, e)
		return
	}
	switch e.Outcome {
	case Applied, Duplicate:
		c.acknowledged(o, e)
	case InDoubt:
		if o.event.NoID {
			c.stats.Unsettled++
			delete(c.open, e.Op)
			return
		}
		if !o.doubted {
			c.stats.Doubts++
		}
		o.doubted = true
	default:
		c.refused(o, e)
	}
}

// repeatedAnswer is that to the repetition of an acknowledged change.
func (c *Checker) repeatedAnswer(o *call, e *Event) {
	delete(c.open, o.event.Op)
	switch {
	case c.lossy(o):
		// The answer says that nobody knows any more, or counts what was lost: the change is in doubt again.
	case e.Outcome == Applied && o.event.Like == nil:
		c.violate(2, "op %d was acknowledged before, and its repetition was counted again", o.event.Op)
	case e.Outcome == Expired && c.now-o.begun < c.cfg.Dedupe-dedupeMargin:
		c.violate(2, "op %d is refused as too old after %v", o.event.Op, c.now-o.begun)
	}
}

// lossy reports whether a rollback may have lost a change or its id.
func (c *Checker) lossy(o *call) bool {
	return o.crossing || o.reverted || c.reverting || o.epoch != c.epoch
}

func (c *Checker) acknowledged(o *call, e *Event) {
	delete(c.open, o.event.Op)
	o.acked = true
	c.stats.Changes += int64(len(o.event.Entries))
	if !o.crossing {
		for _, entry := range o.event.Entries {
			c.keys[entry.Key].acknowledge(entry.Delta)
		}
	}
	if o.event.Like != nil {
		c.stats.Changes++
		c.endLike(o, e.Liked)
	}
	if !o.event.NoID {
		c.last[o.event.Client] = o
	}
}

func (c *Checker) refused(o *call, e *Event) {
	if e.Outcome == Expired && !c.lossy(o) && c.now-o.begun < c.cfg.Dedupe-dedupeMargin {
		c.violate(2, "op %d is refused as too old after %v", o.event.Op, c.now-o.begun)
	}
	if o.doubted {
		return // an earlier attempt may have been counted, and nobody will ever tell
	}
	if !o.event.NoID { // nobody repeats those for their caller
		c.stats.Refused++
	}
	delete(c.open, o.event.Op)
	for _, entry := range o.event.Entries {
		c.keys[entry.Key].unissue(entry.Delta)
	}
	if o.event.Like != nil {
		c.dropLike(o)
	}
}

// fault follows what a fault does to what is known.
func (c *Checker) fault(e *Event) {
	switch e.Kind {
	case Floor:
		for i := range c.keys {
			c.keys[i].floor = c.keys[i].acked()
		}
	case Unsettle:
		c.unsettled = true
		c.disturbed++
	case Settle:
		for i := range c.keys {
			c.keys[i].settle()
		}
		if c.reverting {
			c.rolledBack = c.now
		}
		c.unsettled, c.reverting = false, false
	case Snapshot:
		c.snapshot()
	case Rollback:
		c.rollback()
	case Restored:
		c.restoring = false
	default:
		c.violate(0, "history: event of kind %d", e.Kind)
	}
}

func (c *Checker) snapshot() {
	for i := range c.keys {
		c.keys[i].snapshot = c.keys[i].acked()
	}
	for _, p := range c.pairs {
		p.forgetPast()
	}
	c.remember = true
}

func (c *Checker) rollback() {
	c.epoch++
	c.restoring, c.unsettled, c.reverting = true, true, true
	c.disturbed++
	for i := range c.keys {
		c.keys[i].rollback()
	}
	for _, o := range c.open {
		if o.event.Kind == Change {
			o.crossing = true
			c.issueAgain(o)
		}
	}
	for p, state := range c.pairs {
		c.changed(p, state, state.revert)
	}
	c.remember = false
}
