package rawconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// bufferPool is a pool that says how many buffers are taken, whenever one is put back.
type bufferPool struct {
	taken atomic.Int64
	put   chan int64
}

func (p *bufferPool) Get(size int) *[]byte {
	p.taken.Add(1)
	buffer := make([]byte, size)
	return &buffer
}

func (p *bufferPool) Put(*[]byte) { p.put <- p.taken.Add(-1) }

// A connection that waits for something to read holds no buffer, nor does one that has ended.
func TestReadPooled(t *testing.T) {
	t.Parallel()
	pool := &bufferPool{put: make(chan int64, 10)}
	type result struct {
		text string
		err  error
	}
	read := func(c *Conn) chan result {
		results := make(chan result, 1)
		go func() {
			buffer, n, err := c.ReadPooled(16, pool)
			text := ""
			if buffer != nil {
				text = string((*buffer)[:n])
				pool.taken.Add(-1)
			}
			results <- result{text, err}
		}()
		return results
	}
	for name, test := range map[string]struct {
		end  func(client net.Conn, server *Conn) error
		text string
		want error
	}{
		"something": {end: func(client net.Conn, _ *Conn) error { _, err := client.Write([]byte("text")); return err }, text: "text"},
		"the end":   {end: func(client net.Conn, _ *Conn) error { return client.Close() }, want: io.EOF},
		"closed":    {end: func(_ net.Conn, server *Conn) error { return server.Close() }, want: net.ErrClosed},
		"too late": {
			end:  func(_ net.Conn, server *Conn) error { return server.SetReadDeadline(time.Now()) },
			want: os.ErrDeadlineExceeded,
		},
	} {
		client, server := connect(t, "tcp")
		results := read(server)
		if taken := <-pool.put; taken != 0 {
			t.Errorf("%s: %d buffers are taken by a connection that waits", name, taken)
		}
		if err := test.end(client, server); err != nil {
			t.Fatal(err)
		}
		if got := <-results; got.text != test.text || !errors.Is(got.err, test.want) {
			t.Errorf("%s: %q, %v, want %q, %v", name, got.text, got.err, test.text, test.want)
		}
		if taken := pool.taken.Load(); taken != 0 {
			t.Errorf("%s: %d buffers are taken by a connection that has ended", name, taken)
		}
		for len(pool.put) > 0 {
			<-pool.put
		}
	}
	client, server := net.Pipe() // which cannot say when it is ready
	go func() {
		_, _ = client.Write([]byte("text"))
		_ = client.Close()
	}()
	other := New(server)
	for _, want := range []result{{"text", nil}, {"", io.EOF}} {
		if got := <-read(other); got.text != want.text || !errors.Is(got.err, want.err) {
			t.Errorf("a pipe: %q, %v, want %q, %v", got.text, got.err, want.text, want.err)
		}
	}
}
