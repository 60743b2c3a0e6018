package netfault

import "time"

// change replaces the settings.
func (p *Proxy) change(set func(*settings)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changeLocked(set)
}

// changeLocked is change for who holds mu.
func (p *Proxy) changeLocked(set func(*settings)) {
	old := p.settings.Load()
	fresh := *old
	fresh.replaced = make(chan struct{})
	set(&fresh)
	p.settings.Store(&fresh)
	close(old.replaced)
}

// SetLatency delays each direction by d, to a millisecond. It is a delay, not a limit: what follows within d
// is under way at the same time, up to 4 MiB for each direction of a connection. A shorter one also applies
// to what is under way.
func (p *Proxy) SetLatency(d time.Duration) {
	p.change(func(s *settings) { s.latency = d })
}

// SetRate limits each direction, shared by all connections like a line; 0 is no limit. A connection that has
// more to send than 64 KiB is read from no more until there is room, so that its sender notices.
func (p *Proxy) SetRate(bytesPerSecond int) {
	p.change(func(s *settings) { s.rates = newRates(bytesPerSecond) })
}

// Refuse has new connections reset at once while it is on. Open ones stay.
func (p *Proxy) Refuse(on bool) {
	p.change(func(s *settings) { s.refuse = on })
}

// Reset resets both sides of every open connection.
func (p *Proxy) Reset() {
	p.change(func(s *settings) { s.resets++ })
	for _, c := range p.open() {
		c.reset()
	}
}

// Drop swallows what is sent in a direction while it is on, the end of a connection included; all of them stay
// open. What was under way arrives. When it is switched off, connections that have lost something are reset, as
// TCP never goes on after a gap; those that were silent go on.
func (p *Proxy) Drop(d Direction, on bool) {
	p.mu.Lock()
	p.changeLocked(func(s *settings) { s.drop[d] = on })
	var broken []*conn
	for c := range p.conns {
		if !on && c.lost[d] {
			broken = append(broken, c)
		}
	}
	p.mu.Unlock()
	for _, c := range broken {
		c.reset()
	}
}

// lose reports whether what a connection sends in a direction is swallowed, and notes that it was. The settings
// are looked at under the lock, so that Drop finds every connection that has lost something.
func (p *Proxy) lose(c *conn, d Direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	dropping := p.settings.Load().drop[d]
	c.lost[d] = c.lost[d] || dropping
	return dropping
}

// HalfClose ends a direction of every open connection, as if its sender had. The other direction goes on; what
// is still sent in this one is swallowed.
func (p *Proxy) HalfClose(d Direction) {
	for _, c := range p.open() {
		c.flows[d].queue.finish()
	}
}

// Heal ends all faults: no latency, no limit, connections are accepted and nothing is swallowed, which resets
// those that have lost something (see Drop). A cut that has not happened is disarmed.
func (p *Proxy) Heal() {
	p.change(func(s *settings) { s.latency, s.rates, s.refuse, s.cut = 0, [2]*rate{}, false, nil })
	p.Drop(ToServer, false)
	p.Drop(ToClient, false)
}
