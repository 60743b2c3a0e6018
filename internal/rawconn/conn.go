// Package rawconn reads from and writes to sockets without a word to Go's scheduler.
//
// Go tells its scheduler of each system call, since any may block. A thread of its own then looks every 20 µs whether one is
// still under way while goroutines wait, starts another thread in its place if so, and sleeps for longer only when it has
// found none for a while. The write of a batch to a peer on the same machine takes about as long as that, so this thread
// never slept: a busy server spent 40 to 55 ms of each second on it, and more on the threads it woke (docs/performance.md).
// A socket never blocks: it is waited for by the poller. So its calls are as good as any other code of some microseconds, and
// are made as such here, by what syscall.RawSyscall is for. That holds on Linux; elsewhere a Conn does nothing of its own.
package rawconn

import (
	"context"
	"net"
)

// Dial is a function that makes connections.
type Dial = func(ctx context.Context, network, addr string) (net.Conn, error)

// Over returns a function that makes connections as dial does, each of which is a Conn.
func Over(dial Dial) Dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return New(conn), nil
	}
}
