package netfault

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	patience     = 30 * time.Second
	pollInterval = time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a proxy whose clients and servers are both the test.
type rig struct {
	*Proxy
	t        *testing.T
	listener net.Listener
}

func newRig(t *testing.T) *rig {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return &rig{Proxy: Start(t, listener.Addr().String()), t: t, listener: listener}
}

// end is one end of a connection through the proxy. Its methods fail the test if they cannot do what they say.
type end struct {
	*net.TCPConn
	t *testing.T
}

// connect opens a connection and returns both ends.
func (r *rig) connect() (client, server *end) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := r.listener.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.end(c), r.end(s)
}

func (r *rig) end(c net.Conn) *end {
	r.t.Helper()
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		r.t.Fatalf("%T is not a TCP connection", c)
	}
	return &end{TCPConn: tcp, t: r.t}
}

func (e *end) send(text string) {
	e.t.Helper()
	if _, err := io.WriteString(e, text); err != nil {
		e.t.Fatal(err)
	}
}

func (e *end) wantText(want string) {
	e.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(e, got); err != nil || string(got) != want {
		e.t.Fatalf("received %q, %v, want %q", got[:n], err, want)
	}
}

func (e *end) wantEnd(want error) {
	e.t.Helper()
	if n, err := e.Read(make([]byte, 1)); n > 0 || !errors.Is(err, want) {
		e.t.Fatalf("received %d bytes, %v, want %v", n, err, want)
	}
}

func (e *end) wantReset() { e.t.Helper(); e.wantEnd(syscall.ECONNRESET) }

// wantRefused expects the reset of a new connection, which may be as early as in its dial.
func (r *rig) wantRefused() {
	r.t.Helper()
	c, err := net.Dial("tcp", r.Addr())
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.end(c).wantReset()
}

// roundTrip shows that both directions work.
func roundTrip(client, server *end) {
	client.t.Helper()
	client.send("question")
	server.wantText("question")
	server.send("answer")
	client.wantText("answer")
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	roundTrip(client, server)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	server.wantEnd(io.EOF)
	server.send("last words")
	_ = server.Close()
	client.wantText("last words")
	client.wantEnd(io.EOF)
	if !testproc.Poll(patience, pollInterval, func() bool { return len(r.open()) == 0 }) {
		t.Error("a connection that both sides have ended is kept")
	}

	client, server = r.connect()
	reset(client.TCPConn)
	server.wantReset()
	client, server = r.connect()
	reset(server.TCPConn)
	client.wantReset()

	r.listener.Close()
	r.wantRefused()
}

func TestLatency(t *testing.T) {
	t.Parallel()
	const latency = 50 * time.Millisecond
	r := newRig(t)
	client, server := r.connect()
	roundTrip(client, server)
	r.SetLatency(latency)
	began := time.Now()
	roundTrip(client, server)
	// The resolution is a tick for each direction.
	if took := time.Since(began); took < 2*(latency-tick) {
		t.Errorf("a round trip took %v", took)
	}

	// In order, and under way at the same time: one after the other they would take minutes.
	began = time.Now()
	var want bytes.Buffer
	for i := range 5_000 {
		text := string(rune('a' + i%26))
		want.WriteString(text)
		client.send(text)
	}
	server.wantText(want.String())
	if took := time.Since(began); took > patience/2 {
		t.Errorf("a stream took %v", took)
	}

	r.SetLatency(time.Hour)
	client.send("an hour is too long")
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	r.Heal()
	server.wantText("an hour is too long")
	server.wantEnd(io.EOF)
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(*Proxy){
		"latency": func(p *Proxy) { p.SetLatency(time.Hour) },
		"rate":    func(p *Proxy) { p.SetRate(1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			client, server := r.connect()
			slow(r.Proxy)
			sent := make(chan int)
			data := bytes.Repeat([]byte("x"), 64<<20) // more than the buffers of the system
			go func() {
				n, _ := client.Write(data)
				sent <- n
			}()
			queue := func() int {
				q := r.open()[0].flows[ToServer].queue
				q.mu.Lock()
				defer q.mu.Unlock()
				return q.bytes
			}
			limit := map[string]int{"latency": maxQueued, "rate": maxThrottled}[name]
			if !testproc.Poll(patience, pollInterval, func() bool { return queue() > limit-bufferSize }) {
				t.Errorf("%d bytes are under way", queue())
			}
			if queue() > limit {
				t.Errorf("%d bytes are under way", queue())
			}
			r.Heal()
			if n, err := io.CopyN(io.Discard, server, int64(len(data))); err != nil {
				t.Errorf("%d bytes arrived: %v", n, err)
			}
			if n := <-sent; n != len(data) {
				t.Errorf("%d bytes were sent", n)
			}
		})
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	r.SetRate(100_000)
	began := time.Now()
	data := string(bytes.Repeat([]byte("x"), 20_000))
	client.send(data)
	server.wantText(data)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("20 kB at 100 kB a second took %v", took)
	}
	// The line is one for all connections.
	other, otherServer := r.connect()
	began = time.Now()
	for _, c := range []*end{client, other} {
		c.send(data[:10_000])
	}
	server.wantText(data[:10_000])
	otherServer.wantText(data[:10_000])
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("20 kB of two connections at 100 kB a second took %v", took)
	}
	r.SetRate(0)
	roundTrip(client, server)
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	r.Refuse(true)
	r.wantRefused()
	roundTrip(client, server)
	r.Heal()
	roundTrip(r.connect())
}

func TestReset(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	otherClient, otherServer := r.connect()
	roundTrip(client, server)
	roundTrip(otherClient, otherServer)
	r.SetLatency(time.Hour) // what is under way is lost
	client.send("lost")
	r.Reset()
	for _, e := range []*end{client, server, otherClient, otherServer} {
		e.wantReset()
	}
	r.Heal()
	roundTrip(r.connect())
}

func TestDrop(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]Direction{"ToServer": ToServer, "ToClient": ToClient} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			client, server := r.connect()
			silentClient, silentServer := r.connect()
			roundTrip(client, server)
			roundTrip(silentClient, silentServer)
			from, to := client, server
			if d == ToClient {
				from, to = server, client
			}
			r.Drop(d, true)
			from.send("swallowed")
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if !testproc.Poll(patience, pollInterval, func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				for c := range r.conns {
					if c.lost[d] {
						return true
					}
				}
				return false
			}) {
				t.Fatal("nothing was swallowed")
			}
			to.send("the other direction goes on")
			from.wantText("the other direction goes on")
			r.Drop(d, false)
			to.wantReset()
			from.wantReset()
			roundTrip(silentClient, silentServer)
		})
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, server := r.connect()
	client.send("first")
	server.wantText("first")
	r.HalfClose(ToServer)
	server.wantEnd(io.EOF)
	client.send("to nobody")
	server.send("answer")
	client.wantText("answer")
	client.send("to nobody")
	_ = server.Close()
	client.wantEnd(io.EOF)

	client, server = r.connect()
	server.send("first")
	client.wantText("first")
	r.HalfClose(ToClient)
	client.wantEnd(io.EOF)
	server.send("to nobody")
	client.send("question")
	server.wantText("question")
}
