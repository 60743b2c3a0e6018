package connlimit

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
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

// accepted returns both ends of a connection through a bounded listener.
func accepted(t *testing.T) (client net.Conn, server *counted) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := Listen(inner, "grpc", 1, NewMetrics(prometheus.NewRegistry()))
	t.Cleanup(func() { _ = listener.Close() })
	if client, err = net.Dial("tcp", inner.Addr().String()); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = conn.Close()
	})
	server, ok := conn.(*counted)
	if !ok {
		t.Fatal("it is not counted")
	}
	return client, server
}

// A connection that waits for something to read holds no buffer, nor does one that has ended.
func TestReadOnReady(t *testing.T) {
	t.Parallel()
	pool := &bufferPool{put: make(chan int64, 10)}
	type result struct {
		text string
		err  error
	}
	read := func(c *counted) chan result {
		results := make(chan result, 1)
		go func() {
			buffer, n, err := c.ReadOnReady(16, pool)
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
		end  func(client net.Conn, server *counted) error
		text string
		want error
	}{
		"something": {end: func(client net.Conn, _ *counted) error { _, err := client.Write([]byte("text")); return err }, text: "text"},
		"the end":   {end: func(client net.Conn, _ *counted) error { return client.Close() }, want: io.EOF},
		"closed":    {end: func(_ net.Conn, server *counted) error { return server.Close() }, want: net.ErrClosed},
		"too late": {
			end:  func(_ net.Conn, server *counted) error { return server.SetReadDeadline(time.Now()) },
			want: os.ErrDeadlineExceeded,
		},
	} {
		client, server := accepted(t)
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
	other := &counted{Conn: server, ready: newReady(server)}
	for _, want := range []result{{"text", nil}, {"", io.EOF}} {
		if got := <-read(other); got.text != want.text || !errors.Is(got.err, want.err) {
			t.Errorf("a pipe: %q, %v, want %q, %v", got.text, got.err, want.text, want.err)
		}
	}
}

// asked is a listener whose connections count how often they are read when they are ready.
type asked struct {
	net.Listener
	times atomic.Int64
}

type askedConn struct {
	*counted
	times *atomic.Int64
}

func (l *asked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if c, ok := conn.(*counted); ok {
		return &askedConn{c, &l.times}, err
	}
	return conn, err
}

func (c *askedConn) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	c.times.Add(1)
	return c.counted.ReadOnReady(size, pool)
}

// gRPC reads from a connection that way, though it is none of its own.
func TestGRPCReadsWhenReady(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := &asked{Listener: Listen(inner, "grpc", 1, NewMetrics(prometheus.NewRegistry()))}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(inner.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if listener.times.Load() == 0 {
		t.Error("gRPC has not asked for it")
	}
}
