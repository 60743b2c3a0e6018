package netfault

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// bufferSize is how much is read at once.
const bufferSize = 64 << 10

// conn is a client's connection and the one to the server that goes with it.
type conn struct {
	proxy *Proxy
	flows [2]*flow // by direction
	lost  [2]bool  // by direction: whether something was swallowed; guarded by the proxy's mu
	cut   cutState

	closing sync.Once
	over    chan struct{} // closed when both sockets are closed
	passed  atomic.Int32  // directions whose end was passed on
}

// flow is one direction of a connection.
type flow struct {
	conn      *conn
	direction Direction
	from, to  *net.TCPConn
	queue     *queue
}

func newConn(p *Proxy, client, server *net.TCPConn) *conn {
	c := &conn{proxy: p, over: make(chan struct{})}
	c.flows[ToServer] = &flow{conn: c, direction: ToServer, from: client, to: server}
	c.flows[ToClient] = &flow{conn: c, direction: ToClient, from: server, to: client}
	for _, f := range c.flows {
		f.queue = newQueue(f)
	}
	return c
}

// run passes both directions on until the connection is over.
func (c *conn) run() {
	for _, f := range c.flows {
		c.proxy.group.Go(f.run)
	}
	<-c.over
}

// reset ends the connection with an error for both sides. It may be called repeatedly.
func (c *conn) reset() { c.end(reset) }

func (c *conn) end(end func(*net.TCPConn)) {
	c.closing.Do(func() {
		for _, f := range c.flows {
			end(f.from)
		}
		close(c.over)
	})
}

// wait waits for d, but not longer than the settings are in force. It is false if the connection is over.
func (c *conn) wait(d time.Duration, s *settings) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.replaced:
	case <-c.over:
		return false
	}
	return true
}

// run reads until the sender ends the direction, and passes on what it gets.
func (f *flow) run() {
	buffer := make([]byte, bufferSize)
	for {
		n, err := f.from.Read(buffer)
		if n > 0 {
			f.take(buffer[:n])
		}
		if err != nil {
			f.ended(err)
			return
		}
	}
}

// take deals with what was read.
func (f *flow) take(data []byte) {
	s := f.conn.proxy.settings.Load()
	if !f.conn.cut.passes(f, s.cut, data) {
		return
	}
	if s.drop[f.direction] && f.conn.proxy.lose(f.conn, f.direction) {
		return
	}
	if s.latency > 0 || s.rates[f.direction] != nil || !f.queue.idle() {
		f.queue.put(data)
		return
	}
	f.write(data)
}

// ended deals with the end of what the sender has to say.
func (f *flow) ended(err error) {
	switch {
	case f.conn.proxy.settings.Load().drop[f.direction] && f.conn.proxy.lose(f.conn, f.direction):
	case errors.Is(err, io.EOF) && !f.conn.cut.answering.Load():
		f.queue.finish()
	default:
		f.conn.reset()
	}
}

// write passes bytes on. It is for one caller at a time.
func (f *flow) write(data []byte) {
	// A direction that was ended by HalfClose takes nothing more, and the other one goes on.
	if _, err := f.to.Write(data); err != nil && !f.queue.finished() {
		f.conn.reset()
	}
}

// writeEnd passes the end of the direction on.
func (f *flow) writeEnd() {
	if err := f.to.CloseWrite(); err != nil {
		f.conn.reset()
		return
	}
	if f.conn.passed.Add(1) == int32(len(f.conn.flows)) {
		f.conn.end(func(c *net.TCPConn) { _ = c.Close() })
	}
}
