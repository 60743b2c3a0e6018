package rawconn

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// connect returns both ends of a connection, of which the second is a Conn.
func connect(t testing.TB, network string) (peer net.Conn, c *Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/socket"
	}
	listener, err := net.Listen(network, addr)
	must(t, err)
	defer listener.Close()
	peer, err = net.Dial(network, listener.Addr().String())
	must(t, err)
	conn, err := listener.Accept()
	must(t, err)
	c = New(conn)
	t.Cleanup(func() {
		_ = peer.Close()
		_ = c.Close()
	})
	return peer, c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What is written arrives, in either direction, in both at once, and also if there is more than the system takes at a time.
func TestCopies(t *testing.T) {
	t.Parallel()
	data := make([]byte, 16<<20+1)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			peer, c := connect(t, network)
			var group sync.WaitGroup
			for from, to := range map[net.Conn]net.Conn{peer: c, c: peer} {
				group.Go(func() {
					if n, err := from.Write(data); n != len(data) || err != nil {
						t.Errorf("%d bytes of %d were written: %v", n, len(data), err)
					}
				})
				group.Go(func() {
					got := make([]byte, len(data))
					if _, err := io.ReadFull(to, got); err != nil {
						t.Error(err)
					}
					if !bytes.Equal(got, data) {
						t.Error("other bytes arrived")
					}
				})
			}
			group.Wait()
		})
	}
}

// Writes that are concurrent come one after the other.
func TestConcurrentWrites(t *testing.T) {
	t.Parallel()
	peer, c := connect(t, "tcp")
	const writers, size = 8, 1 << 20
	for i := range writers {
		go func() { _, _ = c.Write(bytes.Repeat([]byte{byte(i)}, size)) }()
	}
	got := make([]byte, size)
	for range writers {
		_, err := io.ReadFull(peer, got)
		must(t, err)
		if !bytes.Equal(got, bytes.Repeat(got[:1], size)) {
			t.Fatal("two writes are mixed")
		}
	}
}

// A connection that waits holds no processor.
func TestManyWait(t *testing.T) {
	t.Parallel()
	var group sync.WaitGroup
	var peers []net.Conn
	for range 2 * runtime.GOMAXPROCS(0) {
		peer, c := connect(t, "tcp")
		peers = append(peers, peer)
		group.Go(func() {
			if n, err := c.Read(make([]byte, 10)); n != 4 || err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		})
		group.Go(func() {
			if _, err := c.Write(make([]byte, 16<<20)); err != nil {
				t.Error(err)
			}
		})
	}
	for _, peer := range peers {
		_, err := peer.Write([]byte("text"))
		must(t, err)
		_, err = io.ReadFull(peer, make([]byte, 16<<20))
		must(t, err)
	}
	group.Wait()
}

// Errors are those of the connection, and say the same as its own do.
func TestErrors(t *testing.T) {
	t.Parallel()
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 10)); return err }
	write := func(c net.Conn) error { _, err := c.Write(make([]byte, 64<<20)); return err }
	abort := func(peer, _ net.Conn) error {
		tcp, ok := peer.(*net.TCPConn)
		if !ok {
			return errors.New("it is not of TCP")
		}
		return errors.Join(tcp.SetLinger(0), tcp.Close())
	}
	for name, test := range map[string]struct {
		call func(net.Conn) error
		end  func(peer, c net.Conn) error
		want error
		or   error  // what may come in its place
		text string // what the error ends with
	}{
		"read at the end":   {call: read, end: func(peer, _ net.Conn) error { return peer.Close() }, want: io.EOF},
		"read of a reset":   {call: read, end: abort, want: syscall.ECONNRESET, text: ": read: connection reset by peer"},
		"read when closed":  {call: read, end: func(_, c net.Conn) error { return c.Close() }, want: net.ErrClosed, text: "use of closed network connection"},
		"read too late":     {call: read, end: func(_, c net.Conn) error { return c.SetReadDeadline(time.Now()) }, want: os.ErrDeadlineExceeded, text: "i/o timeout"},
		"write to a reset":  {call: write, end: abort, want: syscall.ECONNRESET, or: syscall.EPIPE},
		"write when closed": {call: write, end: func(_, c net.Conn) error { return c.Close() }, want: net.ErrClosed, text: "use of closed network connection"},
		"write too late":    {call: write, end: func(_, c net.Conn) error { return c.SetWriteDeadline(time.Now()) }, want: os.ErrDeadlineExceeded, text: "i/o timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, waits := range []bool{true, false} {
				peer, c := connect(t, "tcp")
				failed := make(chan error, 1)
				if waits {
					go func() { failed <- test.call(c) }()
					must(t, test.end(peer, c))
				} else {
					must(t, test.end(peer, c))
					failed <- test.call(c)
				}
				err := <-failed
				if !errors.Is(err, test.want) && !errors.Is(err, test.or) || !strings.HasSuffix(err.Error(), test.text) {
					t.Errorf("waiting %t: %v, want %v", waits, err, test.want)
				}
				var op *net.OpError
				if test.text != "" && !errors.As(err, &op) {
					t.Errorf("waiting %t: %#v is no error of package net", waits, err)
				}
			}
		})
	}
}

// A write that fails says how much the peer can read.
func TestPartOfAWrite(t *testing.T) {
	t.Parallel()
	peer, c := connect(t, "tcp")
	written := make(chan int64)
	go func() {
		n, err := c.Write(make([]byte, 64<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		_ = c.Close()
		written <- int64(n)
	}()
	_, err := peer.Read(make([]byte, 1))
	must(t, err)
	must(t, c.SetWriteDeadline(time.Now()))
	n := <-written
	if got, err := io.Copy(io.Discard, peer); got != n-1 || err != nil {
		t.Errorf("%d bytes arrived after the first, of %d: %v", got, n, err)
	}
}

// A call takes no memory.
func TestAllocations(t *testing.T) { //nolint:paralleltest // others would be counted
	peer, c := connect(t, "tcp")
	b := make([]byte, 100)
	got := testing.AllocsPerRun(100, func() {
		_, err := peer.Write(b)
		must(t, err)
		_, err = c.Read(b)
		must(t, err)
		_, err = c.Write(b)
		must(t, err)
		_, err = io.ReadFull(peer, b)
		must(t, err)
	})
	if got >= 1 {
		t.Errorf("%v allocations", got)
	}
}

// What is no socket is used as it is.
func TestPipe(t *testing.T) {
	t.Parallel()
	peer, conn := net.Pipe()
	c := New(conn)
	for from, to := range map[net.Conn]net.Conn{peer: c, c: peer} {
		go func() { _, _ = from.Write([]byte("text")) }()
		got := make([]byte, 4)
		if _, err := io.ReadFull(to, got); err != nil || string(got) != "text" {
			t.Errorf("%q, %v", got, err)
		}
	}
}
