package history

import "time"

// staleness is how much older than its MaxAge an answer may be: servers tell its age by the store's clock.
const staleness = 500 * time.Millisecond

// read notes what is known when a read begins.
func (c *Checker) read(e *Event) {
	o := &call{event: *e, begun: c.now, epoch: c.epoch, disturbed: c.disturbed, unsettled: c.unsettled}
	if c.open[e.Op] != nil {
		c.violate(0, "history: op %d began twice", e.Op)
		return
	}
	c.open[e.Op] = o
	if e.Kind == ReadLikes {
		o.states = make([]stateReference, len(e.Keys))
		for i, key := range e.Keys {
			o.states[i] = c.state(pair{key, e.Actor}).reference()
		}
		return
	}
	o.refs = make([]reference, len(e.Keys))
	for i, key := range e.Keys {
		o.refs[i] = c.keys[key].reference()
	}
	switch {
	case e.After:
		c.readAfter(o)
	case e.MaxAge > 0:
		old := c.samples.before(c.now - e.MaxAge - staleness)
		for i, key := range e.Keys {
			if old != nil && c.now-c.rolledBack > e.MaxAge+staleness && !c.reverting {
				o.refs[i].acked = old[key]
			} else {
				o.refs[i].acked = c.keys[key].floor
			}
		}
	}
}

// readAfter takes what was known when the client's last acknowledged change began, and that change.
func (c *Checker) readAfter(o *call) {
	last := c.last[o.event.Client]
	if last == nil || len(last.event.Entries) != 1 || len(o.event.Keys) != 1 || last.event.Entries[0].Key != o.event.Keys[0] {
		c.violate(0, "history: op %d reads after a change that is unknown", o.event.Op)
		return
	}
	o.epoch = last.epoch
	if last.crossing {
		o.epoch-- // it may be lost
	}
	o.refs[0] = last.refs[0]
	if delta := last.event.Entries[0].Delta; delta > 0 {
		o.refs[0].up += delta
	} else {
		o.refs[0].down += delta
	}
}

func (c *Checker) readAnswer(e *Event) {
	o := c.ended(e)
	if o == nil || e.Failed {
		return
	}
	calm := !c.unsettled && !o.unsettled && c.disturbed == o.disturbed && !o.event.After && o.event.MaxAge == 0
	for i, v := range e.Values {
		key := o.event.Keys[i]
		k, ref := &c.keys[key], o.refs[i]
		c.stats.Reads++
		if v.Stale || o.epoch != c.epoch {
			ref.acked = k.floor
			c.stats.Stale += int64(index(v.Stale))
		}
		if adds := v.Count - v.Likes; !k.within(adds, ref.acked) {
			c.violate(3, "op %d read %d of %s (fresh %v, stale %v), and it was between %d and %d", e.Op, adds, c.cfg.Keys[key],
				o.event.MaxAge == 0, v.Stale, ref.up+k.issuedDown, k.issuedUp+ref.down)
		}
		low, high := int64(0), k.everLiked
		if calm && !v.Stale {
			low, high = k.likesBounds(ref)
		}
		if (calm || v.Stale) && (v.Likes < low || v.Likes > high) {
			c.violate(3, "op %d read %d likes of %s, and there were between %d and %d", e.Op, v.Likes, c.cfg.Keys[key], low, high)
		}
	}
}

func (c *Checker) readLikesAnswer(e *Event) {
	o := c.ended(e)
	if o == nil || e.Failed {
		return
	}
	for i, v := range e.Values {
		p := pair{o.event.Keys[i], o.event.Actor}
		c.stats.Reads++
		if o.epoch == c.epoch && !c.reverting && !c.state(p).possible(v.Liked, o.states[i]) {
			c.violate(3, "op %d read that actor %d likes %s: %v, which was not so", e.Op, p.actor, c.cfg.Keys[p.key], v.Liked)
		}
	}
}

// ended takes a read whose answer has come. It is nil if there is nothing to check.
func (c *Checker) ended(e *Event) *call {
	o := c.open[e.Op]
	delete(c.open, e.Op)
	switch {
	case o == nil:
		c.violate(0, "history: op %d was answered and is unknown", e.Op)
	case e.Failed:
		c.stats.FailedReads++
	case len(e.Values) != len(o.event.Keys):
		c.violate(0, "history: op %d asked for %d keys and was told of %d", e.Op, len(o.event.Keys), len(e.Values))
		return nil
	}
	return o
}
