package rawconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// maxCall is how many bytes one call copies at most. Until it ends its processor does nothing else, and no collection of
// garbage begins.
const maxCall = 64 << 10

// Conn is a connection whose calls the scheduler does not learn of. Its methods may be called concurrently.
type Conn struct {
	net.Conn
	raw syscall.RawConn // nil if the connection is no socket, and is used as it is
	in  reader
	out writer
}

// New returns a connection that takes the place of conn.
func New(conn net.Conn) *Conn {
	c := &Conn{Conn: conn}
	if socket, ok := conn.(syscall.Conn); ok {
		c.raw, _ = socket.SyscallConn() // it fails for no connection that is open
	}
	// They are made once, so that a call takes no memory.
	c.in.ready, c.out.ready = c.in.read, c.out.write
	return c
}

// Pool has buffers that are used again.
type Pool interface {
	Get(size int) *[]byte
	Put(buffer *[]byte)
}

// reader is the direction that is read. Its fields but the first two are of one call.
type reader struct {
	mu    sync.Mutex
	ready func(fd uintptr) bool

	buffer []byte
	// pool has the buffers, of so many bytes, if it is not nil.
	pool   Pool
	size   int
	pooled *[]byte
	n      int
	err    error
}

// read is false if there is nothing to read yet.
func (r *reader) read(fd uintptr) bool {
	if r.pool != nil {
		r.pooled = r.pool.Get(r.size)
		r.buffer = *r.pooled
	}
	for {
		r.n, r.err = read(fd, r.buffer[:min(len(r.buffer), maxCall)])
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if r.pool != nil && r.n <= 0 {
		r.pool.Put(r.pooled)
		r.pooled = nil
	}
	return !errors.Is(r.err, syscall.EAGAIN)
}

// take waits until there is something to read, or an end.
func (c *Conn) take() (n int, err error) {
	r := &c.in
	err = c.raw.Read(r.ready)
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, c.failed("read", r.err)
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (n int, err error) {
	if c.raw == nil || len(b) == 0 {
		return c.Conn.Read(b)
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.buffer = b
	n, err = c.take()
	c.in.buffer = nil
	return n, err
}

// ReadPooled reads up to size bytes into a buffer that it takes from the pool when there is something to read, so that a
// connection that waits holds none. It returns no buffer if there was nothing but an end or an error.
func (c *Conn) ReadPooled(size int, pool Pool) (buffer *[]byte, n int, err error) {
	if c.raw == nil {
		buffer = pool.Get(size)
		if n, err = c.Conn.Read(*buffer); n == 0 {
			pool.Put(buffer)
			return nil, 0, err
		}
		return buffer, n, err
	}
	r := &c.in
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pool, r.size = pool, size
	n, err = c.take()
	buffer = r.pooled
	r.pool, r.pooled, r.buffer = nil, nil, nil
	return buffer, n, err
}

// writer is the direction that is written. Its fields but the first two are of one call.
type writer struct {
	mu    sync.Mutex
	ready func(fd uintptr) bool

	rest []byte
	err  error
}

// write is false if the peer must read before there can be more.
func (w *writer) write(fd uintptr) bool {
	for len(w.rest) > 0 {
		n, err := write(fd, w.rest[:min(len(w.rest), maxCall)])
		switch {
		case err == nil:
			w.rest = w.rest[n:]
		case errors.Is(err, syscall.EAGAIN):
			return false
		case !errors.Is(err, syscall.EINTR):
			w.err = err
			return true
		}
	}
	return true
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (n int, err error) {
	if c.raw == nil || len(b) == 0 {
		return c.Conn.Write(b)
	}
	w := &c.out
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest, w.err = b, nil
	err = c.raw.Write(w.ready)
	if err == nil && w.err != nil {
		err = c.failed("write", w.err)
	}
	n = len(b) - len(w.rest)
	w.rest = nil
	return n, err
}

// failed is the error of a call as package net has it.
func (c *Conn) failed(call string, err error) error {
	local := c.LocalAddr()
	return &net.OpError{Op: call, Net: local.Network(), Source: local, Addr: c.RemoteAddr(), Err: os.NewSyscallError(call, err)}
}
