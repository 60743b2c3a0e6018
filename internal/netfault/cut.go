package netfault

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
)

// Cut is what becomes of a connection and the request at which it is cut.
type Cut int

const (
	// CutRequest ends the connection before the request is passed on: the server never sees all of it.
	CutRequest Cut = iota
	// CutAnswer passes the request on and ends the connection when the server has answered it, without the
	// answer. With Postgres that is when the server is ready for the next query; else when it has sent
	// anything, which is an answer to this request only if no other was under way.
	CutAnswer
)

// armedCut is a cut that waits for its pattern.
type armedCut struct {
	pattern []byte
	cut     Cut
	fired   atomic.Bool
}

// CutOn cuts the next connection that sends pattern to the server, once, with a reset. It replaces an earlier
// cut that has not happened.
func (p *Proxy) CutOn(pattern string, cut Cut) {
	p.change(func(s *settings) {
		s.cut = &armedCut{pattern: []byte(pattern), cut: cut}
		p.lastCut.Store(s.cut)
	})
}

// Fired reports whether the last cut that was armed has happened, or begun: with CutAnswer, whether the request
// has come.
func (p *Proxy) Fired() bool {
	last := p.lastCut.Load()
	return last != nil && last.fired.Load()
}

// cutState is what a connection knows about cuts.
type cutState struct {
	// postgres is whether the client has greeted, and like one of Postgres.
	greeted, postgres bool
	// The end of what was sent since armed was first seen, for a pattern that comes in two reads.
	armed *armedCut
	tail  []byte

	// answering is set once the answer is to be swallowed. The fields above are the requests' alone, and those
	// below the answers'.
	answering atomic.Bool
	answer    []byte
}

// passes reports whether data is to be passed on, and ends the connection at a cut.
func (c *cutState) passes(f *flow, armed *armedCut, data []byte) bool {
	if f.direction == ToClient {
		return c.passesAnswer(f, data)
	}
	if !c.greeted {
		c.greeted, c.postgres = true, isPostgres(data)
	}
	if armed == nil || armed.fired.Load() || !c.matches(armed, data) || armed.fired.Swap(true) {
		return true
	}
	if armed.cut == CutRequest {
		f.conn.reset()
		return false
	}
	c.answering.Store(true)
	return true
}

// matches looks for the pattern in data and what came before it.
func (c *cutState) matches(armed *armedCut, data []byte) bool {
	if c.armed != armed {
		c.armed, c.tail = armed, nil
	}
	keep := max(0, len(armed.pattern)-1)
	// The seam: up to keep bytes of either side.
	seam := append(c.tail, data[:min(keep, len(data))]...)
	found := bytes.Contains(data, armed.pattern) || bytes.Contains(seam, armed.pattern)
	if len(data) >= keep {
		c.tail = append(c.tail[:0], data[len(data)-keep:]...)
	} else {
		c.tail = append(c.tail[:0], seam[max(0, len(seam)-keep):]...)
	}
	return found
}

// readyForQuery is how Postgres ends an answer, whatever the state of the transaction, which comes next.
var readyForQuery = []byte("Z\x00\x00\x00\x05")

// passesAnswer ends the connection when an answer that is to be swallowed is complete.
func (c *cutState) passesAnswer(f *flow, data []byte) bool {
	if !c.answering.Load() {
		return true
	}
	if c.postgres {
		c.answer = append(c.answer, data...)
		if !bytes.Contains(c.answer, readyForQuery) {
			// Enough for one that comes in two reads.
			c.answer = append(c.answer[:0], c.answer[max(0, len(c.answer)-len(readyForQuery)):]...)
			return false
		}
	}
	f.conn.reset()
	return false
}

// isPostgres recognises the first message of a client, which begins with its length and a code: that of a
// request for TLS, or the version 3 of the protocol.
func isPostgres(greeting []byte) bool {
	const requestTLS, version = 80877103, 3
	if len(greeting) < 8 {
		return false
	}
	code := binary.BigEndian.Uint32(greeting[4:])
	return code == requestTLS || code>>16 == version
}
