// Package netfault is a TCP proxy for tests that fails on demand, between real clients and real servers: it
// delays, throttles, swallows, half-closes and resets connections, and cuts them at a request of choice.
//
// It leaves no goroutines behind, so tests that use it can look for leaks.
package netfault

import (
	"context"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/testproc"
)

// listenAttempts covers the case that another process takes the port just before the proxy does.
const listenAttempts = 5

// Direction is one of the two of a connection.
type Direction int

const (
	// ToServer is the direction of requests.
	ToServer Direction = iota
	// ToClient is the direction of answers.
	ToClient
)

// Proxy passes connections on to a server, as well or badly as it is told to. Faults last until Heal, and
// apply to open connections and to new ones. Its methods may be called concurrently.
type Proxy struct {
	target   string
	addr     string
	listener net.Listener
	ctx      context.Context // ends with the proxy
	group    sync.WaitGroup

	// settings are replaced as a whole, so that a connection reads them without a lock.
	settings atomic.Pointer[settings]
	// lastCut is the last cut that was armed, or nil.
	lastCut atomic.Pointer[armedCut]

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
}

// settings are how the proxy treats connections. They are never changed once they are in use.
type settings struct {
	latency time.Duration
	rates   [2]*rate // by direction, nil for no limit
	refuse  bool
	drop    [2]bool // by direction
	cut     *armedCut
	resets  int // calls of Reset so far
	// replaced is closed when other settings are in force.
	replaced chan struct{}
}

// Start starts a proxy for the server at host:port. It has a port of its own, whatever becomes of its
// connections, and ends with the test.
func Start(t testing.TB, target string) *Proxy {
	t.Helper()
	var (
		port     *testproc.Port
		listener net.Listener
	)
	for attempt := 1; ; attempt++ {
		var err error
		if port, err = testproc.ReservePort(); err != nil {
			t.Fatal(err)
		}
		if listener, err = net.Listen("tcp", port.Addr()); err == nil {
			break
		}
		_ = port.Release() // what counts is why it could not be used
		if attempt == listenAttempts {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, addr: port.Addr(), listener: listener, ctx: ctx, conns: map[*conn]struct{}{}}
	p.settings.Store(&settings{replaced: make(chan struct{})})
	p.group.Go(p.accept)
	t.Cleanup(func() {
		cancel()
		p.close()
		if err := port.Release(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// StartURL starts a proxy for the server that a URL names, and returns the same URL by way of the proxy.
func StartURL(t testing.TB, target string) (*Proxy, string) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := Start(t, u.Host)
	u.Host = p.Addr()
	return p, u.String()
}

// Addr is the proxy's address, host:port.
func (p *Proxy) Addr() string { return p.addr }

// accept serves connections until the listener is closed.
func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.serve(client.(*net.TCPConn)) }) //nolint:errcheck // TCP listeners accept nothing else
	}
}

// serve passes a connection on until it has ended. A client whose server cannot be reached is reset.
func (p *Proxy) serve(client *net.TCPConn) {
	s := p.settings.Load()
	if s.refuse {
		reset(client)
		return
	}
	server, err := new(net.Dialer).DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	c := newConn(p, client, server.(*net.TCPConn)) //nolint:errcheck // "tcp" has no other type
	if !p.add(c, s.resets) {
		c.reset()
		return
	}
	c.run()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// add registers a connection, unless the proxy was closed or reset since it came, before which there were so many
// resets.
func (p *Proxy) add(c *conn, resets int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.settings.Load().resets != resets {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// open are the connections that are open.
func (p *Proxy) open() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	return all
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.listener.Close()
	p.Reset()
	p.group.Wait()
}

// reset ends a connection so that its peer gets an error, and not an orderly end.
func reset(c *net.TCPConn) {
	// Both fail only on one that has ended.
	_ = c.SetLinger(0)
	_ = c.Close()
}
