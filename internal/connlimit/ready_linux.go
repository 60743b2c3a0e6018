package connlimit

import "google.golang.org/grpc/mem"

// ReadOnReady is what gRPC asks its connections for, so that idle ones hold no buffer (its package internal/transport/readyreader).
func (c *counted) ReadOnReady(size int, pool mem.BufferPool) (buffer *[]byte, n int, err error) {
	return c.ReadPooled(size, pool)
}
