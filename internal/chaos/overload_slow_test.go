package chaos_test

import (
	"encoding/binary"
	"io"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

const (
	// maxLate is how many late requests a server waits for.
	maxLate = 100
	// announcedRequest is the size of a large request, and heldRequest what a client sends of it, within what it may send on a
	// new connection.
	announcedRequest = 4_000_000
	heldRequest      = 900 << 10
	// slowPeak is the most memory that a server may take that waits for maxLate of these, and for those that are not late yet,
	// with the garbage of the others (GOGC).
	slowPeak = 640 * mebibyte
)

// Clients that send requests a byte at a time, open calls and send none, announce large ones and stall, or watch health and
// never read, harm nobody else: what does not arrive is ended, and there is never more than a part of it. They have no
// deadlines, so nothing else would end their calls.
func TestSlowSenders(t *testing.T) {
	t.Parallel()
	const dripping, silent, silentCalls, waves, stalling, watching, watches = 50, 4, 200, 3, 60, 2, 1_000
	s, by := serveOthers(t)
	before := s.Metric("go_goroutines")
	for range watching {
		c := greeted(t, s.GRPCAddr)
		for range watches {
			must(t, c.call(healthpb.Health_Watch_FullMethodName, messageOf(t, &healthpb.HealthCheckRequest{}), 5))
		}
	}
	ended := func() float64 { return s.Metric("plusone_server_shed_total") }
	slow := 0.
	endedButLate := func() bool { return ended() >= slow-maxLate }
	for range dripping {
		c := greeted(t, s.GRPCAddr)
		must(t, c.call(plusonev1.CounterService_Increment_FullMethodName, nil, 0))
		go c.drip(messageOf(t, &plusonev1.IncrementRequest{Key: othersKey}))
	}
	for range silent {
		c := greeted(t, s.GRPCAddr)
		for range silentCalls {
			must(t, c.call(plusonev1.CounterService_Get_FullMethodName, nil, 0))
		}
	}
	slow += dripping + silent*silentCalls
	waitUntil(t, "calls without a request are ended", endedButLate)
	for range waves {
		for range stalling {
			greeted(t, s.GRPCAddr).stall(t)
		}
		slow += stalling
		waitUntil(t, "calls with a part of their request are ended", endedButLate)
	}
	told := wantOthersServed(t, s, by)
	wantPeak(t, s, slowPeak)
	connections := float64(watching + dripping + silent + waves*stalling)
	bound := before + 2*watching*watches + maxLate + 4*connections + 100
	if got := s.Metric("go_goroutines"); got > bound {
		t.Errorf("%v goroutines, and before there were %v", got, before)
	}
	if got := ended(); got > slow {
		t.Errorf("%v calls were ended, and %v did not arrive", got, slow)
	}
	wantStop(t, s)
	s.Spawn()
	s.WaitReady()
	counted(t, services(t, s.GRPCAddr, 1)[0], othersKey, told)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// greeted is a client that has greeted and lets the server send nothing of the answers.
func greeted(t testing.TB, addr string) *rawClient {
	t.Helper()
	c := dialRaw(t, addr)
	must(t, c.greet(0))
	return c
}

// drip sends a message a byte at a time, for longer than any test lasts, until the connection ends.
func (c *rawClient) drip(message []byte) {
	message[1] = 0 // it is announced to be longer
	message[3] = 0xff
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for range ticker.C {
		next := byte(0)
		if len(message) > 0 {
			next, message = message[0], message[1:]
		}
		if _, err := c.Write(appendFrame(nil, frameData, 0, c.stream, []byte{next})); err != nil {
			return
		}
	}
}

// stall announces a large message and sends a part of it.
func (c *rawClient) stall(t testing.TB) {
	t.Helper()
	must(t, c.call(plusonev1.CounterService_BatchIncrement_FullMethodName, make([]byte, announcedRequest), 0))
	announced := binary.BigEndian.AppendUint32([]byte{0}, announcedRequest)
	_, err := c.Write(appendFrame(nil, frameData, 0, c.stream, announced))
	must(t, err)
	c.awaitWindow(t)
	part := make([]byte, maxFrame)
	for range heldRequest / maxFrame {
		_, err := c.Write(appendFrame(nil, frameData, 0, c.stream, part))
		must(t, err)
	}
}

// awaitWindow waits until the server takes more of the last call.
func (c *rawClient) awaitWindow(t testing.TB) {
	t.Helper()
	for {
		var head [9]byte
		_, err := io.ReadFull(c, head[:])
		must(t, err)
		length := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
		_, err = io.CopyN(io.Discard, c, length)
		must(t, err)
		if head[3] == frameWindowUpdate && binary.BigEndian.Uint32(head[5:]) == c.stream {
			return
		}
	}
}
