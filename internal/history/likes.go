package history

import "slices"

// pair is who likes what.
type pair struct{ key, actor uint32 }

// pairState is what is known of a like: the writes of which any may be the last one. A pair that was never written is
// not liked, as if by a write that ended before the history began.
type pairState struct {
	writes []*write
	// begun counts the writes that have begun, by the state they set.
	begun [2]int
	// past are the states that were superseded since the last snapshot.
	past [2]bool
}

// write is a like or unlike.
type write struct {
	liked bool
	ended bool
	// begunAfter is how many writes of the pair had ended when this one began, endedAs its place among them.
	begunAfter, endedAs int
}

// ends counts the writes of a pair that have ended.
func (p *pairState) ends() int {
	last := 0
	for _, w := range p.writes {
		last = max(last, w.endedAs)
	}
	return last
}

// may reports whether the pair may be in a state.
func (p *pairState) may(liked bool) bool {
	return slices.ContainsFunc(p.writes, func(w *write) bool { return w.liked == liked })
}

// certain is the state of a pair if there is only one that it may be in, and no write is under way.
func (p *pairState) certain() *bool {
	for _, w := range p.writes {
		if !w.ended || w.liked != p.writes[0].liked {
			return nil
		}
	}
	return &p.writes[0].liked
}

// supersede forgets writes that ended before one began that has ended now.
func (p *pairState) supersede(last *write) {
	p.writes = slices.DeleteFunc(p.writes, func(w *write) bool {
		old := w != last && w.ended && w.endedAs <= last.begunAfter
		if old {
			p.past[index(w.liked)] = true
		}
		return old
	})
}

func (p *pairState) forgetPast() { p.past = [2]bool{} }

// revert makes every state since the snapshot possible again.
func (p *pairState) revert() {
	ends := p.ends()
	for _, liked := range []bool{false, true} {
		if p.past[index(liked)] && !p.may(liked) {
			p.writes = append(p.writes, &write{liked: liked, ended: true, endedAs: ends})
		}
	}
	for _, w := range p.writes {
		// A write that begins later supersedes all of these.
		if w.ended {
			w.endedAs = ends
		}
	}
	p.forgetPast()
}

func index(liked bool) int {
	if liked {
		return 1
	}
	return 0
}

// state is the state of a pair.
func (c *Checker) state(p pair) *pairState {
	state := c.pairs[p]
	if state == nil {
		state = &pairState{writes: []*write{{ended: true}}}
		c.pairs[p] = state
	}
	return state
}

// changed does something to a pair and keeps the numbers of its key.
func (c *Checker) changed(p pair, state *pairState, do func()) {
	k := &c.keys[p.key]
	surely, maybe := !state.may(false), state.may(true)
	do()
	switch now := !state.may(false); {
	case surely && !now:
		k.surelyLiked--
		k.lessSure++
	case !surely && now:
		k.surelyLiked++
	}
	switch now := state.may(true); {
	case maybe && !now:
		k.maybeLiked--
	case !maybe && now:
		k.maybeLiked++
		k.moreMaybe++
	}
}

func (c *Checker) beginLike(o *call) {
	l := o.event.Like
	p := pair{l.Key, l.Actor}
	state := c.state(p)
	o.known = state.certain()
	c.changed(p, state, func() {
		o.write = &write{liked: l.Liked, begunAfter: state.ends()}
		state.writes = append(state.writes, o.write)
		if l.Liked && state.begun[1] == 0 {
			c.keys[l.Key].everLiked++
		}
		state.begun[index(l.Liked)]++
		o.states = []stateReference{state.reference()}
	})
}

// endLike settles a like that was acknowledged.
func (c *Checker) endLike(o *call, answer *Liked) {
	l := o.event.Like
	p := pair{l.Key, l.Actor}
	state := c.state(p)
	alone := state.begun == o.states[0].begun
	c.changed(p, state, func() {
		o.write.ended, o.write.endedAs = true, state.ends()+1
		if !o.crossing { // else it may be lost, and what was before it the last
			state.supersede(o.write)
		}
	})
	calm := !c.unsettled && !o.unsettled && c.disturbed == o.disturbed
	if answer == nil || !calm || o.repeated {
		return
	}
	if o.known != nil && alone && !answer.Provisional && answer.Changed != (*o.known != l.Liked) {
		c.violate(5, "op %d set the like of %s by actor %d to %v, which was %v, and was told changed=%v",
			o.event.Op, c.cfg.Keys[l.Key], l.Actor, l.Liked, *o.known, answer.Changed)
	}
	if answer.CountKnown {
		k := &c.keys[l.Key]
		low, high := k.likesBounds(o.refs[0])
		low, high = low+o.refs[0].up+k.issuedDown, high+k.issuedUp+o.refs[0].down
		if answer.Count < low || answer.Count > high {
			c.violate(3, "op %d was told that %s counts %d, and it was between %d and %d", o.event.Op, c.cfg.Keys[l.Key], answer.Count, low, high)
		}
	}
}

// dropLike takes back a like that was refused.
func (c *Checker) dropLike(o *call) {
	p := pair{o.event.Like.Key, o.event.Like.Actor}
	state := c.state(p)
	c.changed(p, state, func() {
		state.writes = slices.DeleteFunc(state.writes, func(w *write) bool { return w == o.write })
	})
}

// stateReference is what was known of a pair when a call began.
type stateReference struct {
	may   [2]bool
	begun [2]int
}

func (p *pairState) reference() stateReference {
	return stateReference{may: [2]bool{p.may(false), p.may(true)}, begun: p.begun}
}

// possible reports whether a pair may have been in a state at some moment since the reference.
func (p *pairState) possible(liked bool, r stateReference) bool {
	i := index(liked)
	return r.may[i] || p.begun[i] > r.begun[i]
}
