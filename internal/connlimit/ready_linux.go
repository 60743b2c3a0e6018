package connlimit

import (
	"errors"
	"io"
	"net"
	"syscall"

	"google.golang.org/grpc/mem"
)

// ready reads from a connection for which memory is taken once there is something to read. Its memory is used again, so one
// goroutine may read at a time.
type ready struct {
	raw  syscall.RawConn // nil if the connection is none of TCP
	read func(fd uintptr) bool

	size   int
	pool   mem.BufferPool
	buffer *[]byte
	n      int
	err    error
}

func newReady(conn net.Conn) *ready {
	r := &ready{}
	if tcp, ok := conn.(*net.TCPConn); ok {
		r.raw, _ = tcp.SyscallConn() // it fails for no connection that Accept has returned
	}
	r.read = func(fd uintptr) bool {
		r.buffer = r.pool.Get(r.size)
		for {
			r.n, r.err = syscall.Read(int(fd), *r.buffer)
			if !errors.Is(r.err, syscall.EINTR) {
				break
			}
		}
		if r.err == nil && r.n > 0 {
			return true
		}
		r.pool.Put(r.buffer)
		r.buffer = nil
		if r.err == nil {
			r.err = io.EOF
		}
		return !errors.Is(r.err, syscall.EAGAIN)
	}
	return r
}

// ReadOnReady reads up to size bytes into a buffer that it takes from a pool when there is something to read: gRPC asks its
// connections for that, so that idle ones hold no buffer (its package internal/transport/readyreader).
func (c *counted) ReadOnReady(size int, pool mem.BufferPool) (buffer *[]byte, n int, err error) {
	r := c.ready
	if r.raw == nil {
		buffer = pool.Get(size)
		if n, err = c.Read(*buffer); n == 0 {
			pool.Put(buffer)
			return nil, 0, err
		}
		return buffer, n, err
	}
	r.size, r.pool = size, pool
	err = r.raw.Read(r.read)
	buffer, n = r.buffer, r.n
	if err == nil {
		err = r.err
	}
	r.pool, r.buffer, r.n, r.err = nil, nil, 0, nil
	if buffer == nil {
		n = 0
	}
	return buffer, n, err
}
