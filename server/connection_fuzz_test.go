package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// preface is how a client greets a server in HTTP/2: with its first frame, settings that change nothing.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// FuzzConnection sends bytes over a connection of their own, after a greeting or without: whatever they are, the server
// hangs up in the end, has nothing left over, and goes on serving others.
func FuzzConnection(f *testing.F) {
	store := wireStore()
	r := start(f, store, Config{})
	for _, seed := range []string{
		"",
		"GET / HTTP/1.1\r\nHost: plusone\r\n\r\n",
		"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", // the beginning of TLS
		preface[:10],
		preface[:24],
	} {
		f.Add(false, []byte(seed))
	}
	for _, frames := range []string{
		"",
		"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff",                 // settings with a window that is too large
		"\x00\x00\x08\x06\x00\x00\x00\x00\x00plusone.",                                 // ping
		"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",                         // a window update by 0
		"\x00\x00\x05\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00",                     // data of no call
		"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",                                     // a call without a path
		"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xff",                                     // headers that cannot be read
		"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82\x00\x00\x00\x09\x04\x00\x00\x00\x01", // headers that go on
		"\x7f\xff\xff\x00\x00\x00\x00\x00\x01",                                         // a frame that is too large
	} {
		f.Add(true, []byte(frames))
	}
	frames := bytes.TrimPrefix(recordCalls(f, r), []byte(preface))
	f.Add(true, frames)
	f.Add(true, frames[:len(frames)-3])
	f.Fuzz(func(t *testing.T, greet bool, sent []byte) {
		defer r.stillServes(t)
		defer store.takeChanges()
		if greet {
			sent = slices.Concat([]byte(preface), sent)
		}
		conn, err := net.Dial("tcp", r.conn.Target())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(fuzzPatience)); err != nil {
			t.Fatal(err)
		}
		// The server may have hung up by now, which is an answer too.
		_, err = conn.Write(sent)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			err = tcp.CloseWrite()
		}
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server did not hang up after %q", sent)
		}
	})
}

// recordCalls returns what a client sends that makes some calls.
func recordCalls(f *testing.F, r *running) []byte {
	f.Helper()
	sent := &safeBuffer{}
	conn, err := grpc.NewClient(r.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return &recordedConn{conn, sent}, err
		}))
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := plusonev1.NewCounterServiceClient(conn)
	_, changeErr := client.Increment(f.Context(), &plusonev1.IncrementRequest{Key: "k"})
	_, readErr := client.BatchGet(f.Context(), &plusonev1.BatchGetRequest{Keys: []string{"k", "l"}})
	if err := errors.Join(changeErr, readErr); err != nil {
		f.Fatal(err)
	}
	return []byte(sent.String())
}

// recordedConn is a connection that keeps what is sent over it.
type recordedConn struct {
	net.Conn
	sent *safeBuffer
}

func (c *recordedConn) Write(p []byte) (int, error) {
	_, _ = c.sent.Write(p) // never fails
	return c.Conn.Write(p)
}
