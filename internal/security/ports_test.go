package security_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// get asks the HTTP port by TLS.
func (s *site) get(t *testing.T, path string) (code int, body string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: s.tls(), DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: plusonetest.Patience}
	resp, err := client.Get("https://" + s.HTTPAddr + path)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(text)
}

// greetHTTP makes a connection to the HTTP port, which is closed with the test.
func (s *site) greetHTTP(t *testing.T) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", s.HTTPAddr, s.tls())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// metric is the value of a metric with its labels.
func (s *site) metric(t *testing.T, name string) string {
	t.Helper()
	_, page := s.get(t, "/metrics")
	return metricOf(page, name)
}

// Nothing is served in plain text, nor by an old TLS.
func TestOnlyTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	s.start()
	ctx, cancel := context.WithTimeout(bearer(t, token), 2*time.Second)
	defer cancel()
	plain := plusonev1.NewCounterServiceClient(s.dial(insecure.NewCredentials()))
	if _, err := plain.Get(ctx, &plusonev1.GetRequest{Key: "views/a"}); err == nil {
		t.Error("the gRPC port answers in plain text")
	}
	resp, err := http.Get("http://" + s.HTTPAddr + "/metrics")
	if err == nil {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK || strings.Contains(string(body), "plusone_") {
			t.Errorf("the HTTP port answers %d in plain text", resp.StatusCode)
		}
	}
	for _, addr := range []string{s.GRPCAddr, s.HTTPAddr} {
		for name, change := range map[string]func(*tls.Config){
			"TLS 1.0": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 },
			"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			"RSA key exchange": func(c *tls.Config) {
				c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_GCM_SHA384}
			},
		} {
			c := s.tls()
			c.NextProtos = []string{"h2", "http/1.1"}
			change(c)
			if conn, err := tls.Dial("tcp", addr, c); err == nil {
				_ = conn.Close()
				t.Errorf("%s is taken at %s", name, addr)
			}
		}
		c := s.tls()
		c.NextProtos = []string{"h2", "http/1.1"}
		conn, err := tls.Dial("tcp", addr, c)
		must(t, err)
		if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("%s speaks TLS %x", addr, v)
		}
		_ = conn.Close()
	}
	for range 200 {
		conn, err := net.Dial("tcp", s.HTTPAddr)
		must(t, err)
		_, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
	if n := strings.Count(string(s.Output()), "HTTP connection failed"); n == 0 || n > 100 {
		t.Errorf("%d lines are logged of 200 connections that failed", n)
	}
}

// The HTTP port has its pages and nothing behind them, whatever a path looks like.
func TestPaths(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	s.start()
	answer := func(line string) (int, string) {
		t.Helper()
		conn := s.greetHTTP(t)
		must(t, conn.SetDeadline(time.Now().Add(plusonetest.Patience)))
		_, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: plusone\r\nConnection: close\r\n\r\n", line)
		must(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	for _, line := range []string{"GET /healthz", "GET /metrics", "GET /"} {
		if code, _ := answer(line); code != http.StatusOK {
			t.Errorf("%s: %d", line, code)
		}
	}
	for _, line := range []string{
		"GET //metrics", "GET /metrics/", "GET /./metrics", "GET /x/../metrics", "GET /metrics%00", "GET /metrics;x", "GET /Metrics",
		"GET /debug/pprof", "GET /debug/pprof/", "GET //debug/pprof/", "GET /..%2fdebug/pprof", "GET /%2e%2e/debug/pprof/heap",
		"GET /metrics/../debug/pprof/heap", "GET /healthz/..%2f..%2fdebug%2fpprof", "GET http://127.0.0.1/debug/pprof/",
		"GET /../../../../etc/passwd", "GET /..\\..\\etc\\passwd", "GET /%2e%2e%2f%2e%2e%2fetc%2fpasswd", "GET /.git/config", "GET /vars",
		"POST /metrics", "PUT /healthz", "DELETE /", "TRACE /", "PROPFIND /", "CONNECT 127.0.0.1:22", "OPTIONS *",
	} {
		code, body := answer(line)
		if code == http.StatusOK && line != "OPTIONS *" || strings.Contains(body, "goroutine") || strings.Contains(body, "root:") ||
			strings.Contains(body, "# HELP") {
			t.Errorf("%s: %d\n%.200s", line, code, body)
		}
	}
}

// Profiles and channelz are at the administrative address, for this machine by its own name, and nowhere else.
func TestAdministrativeAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read", "admin"}, Namespaces: []string{"*"}})
	s.start("--admin-addr=127.0.0.1:0")
	addr, _ := s.Logged("profiles are served")["admin_addr"].(string)
	ask := func(host, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
		must(t, err)
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	for _, host := range []string{addr, "localhost:1", "[::1]:1", "127.0.0.2"} {
		if code, body := ask(host, "/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
			t.Errorf("asked as %s: %d", host, code)
		}
	}
	for host, path := range map[string]string{
		"evil.example": "/debug/pprof/", "10.0.0.1": "/debug/pprof/", "127.0.0.1.evil.example": "/debug/pprof/heap",
		addr: "/debug/pprof/cmdline", "localhost": "/metrics",
	} {
		if code, _ := ask(host, path); code == 200 {
			t.Errorf("asked as %s for %s: %d", host, path, code)
		}
	}
	channelz := func(conn *grpc.ClientConn) error {
		_, err := channelzpb.NewChannelzClient(conn).GetServers(bearer(t, token), &channelzpb.GetServersRequest{})
		return err
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	if err := channelz(conn); err != nil {
		t.Errorf("channelz: %v", err)
	}
	s.Terminate()

	s = newSite(t)
	token = s.add(auth.Caller{Name: "web", Scopes: []string{"read", "admin"}, Namespaces: []string{"*"}})
	s.start()
	if err := channelz(s.dial(tlsOf(s))); status.Code(err) != codes.Unimplemented {
		t.Errorf("channelz at the port of the API: %v", err)
	}
}

// Off loopback it starts with TLS and authentication, and tells strangers nothing.
func TestOffLoopback(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"write"}, Namespaces: []string{"*"}})
	s.start()
	s.Kill()
	s.Instance = plusonetest.Launch(t, binary, "serve", "--grpc-addr=0.0.0.0:0", "--data="+s.path("plusone.db"),
		"--tls-cert="+s.server.Certificate, "--tls-key="+s.server.Key, "--tokens-file="+s.path("callers.yaml"))
	s.WaitReady()
	_, port, err := net.SplitHostPort(s.GRPCAddr)
	must(t, err)
	s.GRPCAddr = "127.0.0.1:" + port
	if _, err := s.counters(s.tls()).Increment(bearer(t, token), &plusonev1.IncrementRequest{Key: "views/a"}); err != nil {
		t.Error(err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(s.dial(tlsOf(s))).ServerReflectionInfo(bearer(t, token))
	must(t, err)
	if _, err = stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection: %v", err)
	}
}

// Requests that are too large are refused, before and after it is known who sends them, and others go on.
func TestLargeRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read", "write"}, Namespaces: []string{"*"}})
	s.start()
	counters := s.counters(s.tls())
	large := &plusonev1.IncrementRequest{Key: strings.Repeat("x", 8<<20)}
	for token, want := range map[string]codes.Code{"": codes.Unauthenticated, token: codes.ResourceExhausted} {
		if _, err := counters.Increment(bearer(t, token), large); status.Code(err) != want {
			t.Errorf("a request of 8 MB: %v, want %v", err, want)
		}
	}
	ctx := metadata.AppendToOutgoingContext(bearer(t, token), "x-large", strings.Repeat("x", 100<<10))
	if _, err := counters.Get(ctx, &plusonev1.GetRequest{Key: "views/a"}); err == nil {
		t.Error("metadata of 100 kB is taken")
	}
	ctx = bearer(t, token)
	for i := range 1_000 {
		ctx = metadata.AppendToOutgoingContext(ctx, fmt.Sprint("x-", i), strings.Repeat("x", 100))
	}
	if _, err := counters.Get(ctx, &plusonev1.GetRequest{Key: "views/a"}); err == nil {
		t.Error("a thousand headers are taken")
	}
	if _, err := counters.Get(bearer(t, token), &plusonev1.GetRequest{Key: "views/a"}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Connections that say nothing, or say it slowly, are bounded and cut off, and make room again.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	const limit, crowd = 1_000, 2_000
	s.start(fmt.Sprint("--max-connections=", limit))
	early := s.counters(s.tls())
	get := func(c plusonev1.CounterServiceClient) error {
		_, err := c.Get(bearer(t, token), &plusonev1.GetRequest{Key: "views/a"})
		return err
	}
	must(t, get(early))
	conns := make([]net.Conn, crowd)
	for i := range conns {
		var err error
		conns[i], err = net.Dial("tcp", s.GRPCAddr)
		must(t, err)
		defer conns[i].Close()
	}
	// Among them a slow one, which never stops to talk.
	slow := make(chan error, 1)
	go func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		hello := []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3} // the beginning of a ClientHello
		for range ticker.C {
			next := byte(0)
			if len(hello) > 0 {
				next, hello = hello[0], hello[1:]
			}
			if _, err := conns[0].Write([]byte{next}); err != nil {
				slow <- err
				return
			}
		}
	}()
	if err := get(early); err != nil {
		t.Errorf("a client that was there: %v", err)
	}
	eventually(t, "connections beyond the limit are refused", func() bool {
		return s.metric(t, `plusone_connections_refused_total{listener="grpc"}`) == fmt.Sprint(crowd-limit+1)
	})
	cut := 0
	for _, conn := range conns[1:] {
		must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
		if _, err := io.Copy(io.Discard, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			cut++
		}
	}
	if cut != crowd-1 {
		t.Errorf("%d of %d connections were cut off", cut, crowd-1)
	}
	if err := <-slow; err == nil {
		t.Error("the slow one goes on")
	}
	if err := get(s.counters(s.tls())); err != nil {
		t.Errorf("a client that came later: %v", err)
	}
}

// A request over HTTP that never ends is cut off.
func TestSlowHTTP(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	s.start()
	conn := s.greetHTTP(t)
	_, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n")
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn)
	}()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case <-ticker.C:
			_, _ = io.WriteString(conn, "X-Slow: x\r\n")
			continue
		case <-ended:
		case <-deadline:
			t.Error("the request was not cut off")
		}
		return
	}
}
