package flush_test

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"testing"
)

// cut is what a proxy does to a connection when it sees its pattern.
type cut int

const (
	// cutRequest ends the connection before the request is passed on.
	cutRequest cut = iota
	// cutAnswer passes the request on and ends the connection when the server has done it, without its answer.
	cutAnswer
)

// proxy passes connections on to Postgres until it sees a pattern in a request.
type proxy struct {
	url    string
	target string

	mu      sync.Mutex
	pattern []byte
	cut     cut
}

func newProxy(t *testing.T, database string) *proxy {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u.Host}
	u.Host = listener.Addr().String()
	p.url = u.String()
	var group sync.WaitGroup
	group.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		group.Wait()
	})
	return p
}

// arm makes the proxy cut the next connection that sends the pattern.
func (p *proxy) arm(pattern string, cut cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pattern, p.cut = []byte(pattern), cut
}

// fires reports whether the request is to be cut, once.
func (p *proxy) fires(request []byte) (cut, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pattern == nil || !bytes.Contains(request, p.pattern) {
		return 0, false
	}
	p.pattern = nil
	return p.cut, true
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	var mu sync.Mutex
	swallow := false // answers are not passed on any more

	var group sync.WaitGroup
	group.Go(func() {
		defer client.Close()
		defer server.Close()
		buffer := make([]byte, 1<<16)
		var swallowed []byte
		for {
			n, err := server.Read(buffer)
			if err != nil {
				return
			}
			mu.Lock()
			drop := swallow
			mu.Unlock()
			if !drop {
				if _, err := client.Write(buffer[:n]); err != nil {
					return
				}
				continue
			}
			// Ready for query, whatever the state of the transaction: the request is done.
			swallowed = append(swallowed, buffer[:n]...)
			if bytes.Contains(swallowed, []byte("Z\x00\x00\x00\x05")) {
				return
			}
		}
	})
	buffer := make([]byte, 1<<16)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			break
		}
		if cut, ok := p.fires(buffer[:n]); ok {
			if cut == cutRequest {
				break
			}
			mu.Lock()
			swallow = true
			mu.Unlock()
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			break
		}
	}
	mu.Lock()
	waiting := swallow
	mu.Unlock()
	if !waiting {
		server.Close()
	}
	group.Wait()
}
