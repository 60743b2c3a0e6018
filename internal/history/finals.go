package history

// finals are what the sources said in the end.
type finals struct {
	counts map[uint32]said
	likes  map[pair]saidLike
}

type said struct {
	source string
	value  Value
}

type saidLike struct {
	source string
	liked  bool
}

func newFinals() finals {
	return finals{counts: make(map[uint32]said), likes: make(map[pair]saidLike)}
}

// observe checks totals that were seen in a place of their own. Durable totals lag, so while changes go on they are
// only bounded from above.
func (c *Checker) observe(e *Event) {
	final := e.Source != ""
	for i, key := range e.Keys {
		v, k := e.Values[i], &c.keys[key]
		c.stats.Reads++
		adds := v.Count - v.Likes
		if !final {
			if !k.within(adds, acked{0, 0}) {
				c.violate(1, "durable total %d of %s, and it was at most %d", adds, c.cfg.Keys[key], k.issuedUp)
			}
			k.durable = max(k.durable, adds)
			continue
		}
		if !k.within(adds, k.acked()) {
			c.violate(1, "%s has %d of %s, and acknowledged and in doubt are %d to %d", e.Source, adds, c.cfg.Keys[key],
				k.ackedUp+k.issuedDown, k.issuedUp+k.ackedDown)
		}
		if v.Likes < k.surelyLiked || v.Likes > k.maybeLiked {
			c.violate(1, "%s has %d likes of %s, and acknowledged and in doubt are %d to %d", e.Source, v.Likes, c.cfg.Keys[key],
				k.surelyLiked, k.maybeLiked)
		}
		before, there := c.finals.counts[key]
		if !there {
			c.finals.counts[key] = said{e.Source, v}
		} else if before.value.Count != v.Count || before.value.Likes != v.Likes {
			c.violate(5, "%s has %d and %d likes of %s, and %s has %d and %d", e.Source, v.Count, v.Likes, c.cfg.Keys[key],
				before.source, before.value.Count, before.value.Likes)
		}
	}
}

func (c *Checker) observeLikes(e *Event) {
	for i, key := range e.Keys {
		p, liked := pair{key, e.Actor}, e.Values[i].Liked
		c.stats.Reads++
		if !c.state(p).may(liked) {
			c.violate(1, "%s has that actor %d likes %s: %v, which was not the last", e.Source, p.actor, c.cfg.Keys[key], liked)
		}
		before, there := c.finals.likes[p]
		if !there {
			c.finals.likes[p] = saidLike{e.Source, liked}
		} else if before.liked != liked {
			c.violate(5, "%s has that actor %d likes %s: %v, and %s has %v", e.Source, p.actor, c.cfg.Keys[key], liked, before.source, before.liked)
		}
	}
}
