package chaos_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

const (
	// maxStreams is how many calls of a connection a server has open.
	maxStreams = 1_000
	// heldPeak is the most memory that a server may take that holds maxStreams answers of 40 kB, in buffers of up
	// to twice that, and the garbage of having made them (GOGC). Those of 5 kB, for two clients, take a part of it.
	heldPeak = 384 * mebibyte
	// stopTime is a --shutdown-timeout. greetingTime is how long a stop may wait beyond it for new connections,
	// and stopSlack what the machine may add.
	stopTime     = time.Second
	greetingTime = 5 * time.Second
	stopSlack    = 5 * time.Second
)

// Clients that ask and never read the answers harm nobody else: a server takes no more of their calls when as many
// answers wait as a connection may have calls, and those take up no place among the calls in flight. They cannot keep it
// from stopping.
func TestClientsThatNeverRead(t *testing.T) {
	t.Parallel()
	const clients = 2
	s, by := serveOthers(t)
	request := cachedBatch(t, by, 100, 0)
	ended := make(chan error, clients)
	for range clients {
		c := dialRaw(t, s.GRPCAddr)
		go func() { ended <- askForever(c, request) }()
	}
	for range clients {
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a client that never reads could ask until %v", err)
		}
	}
	if asked := startedCalls(t, s, "BatchGet"); asked < clients*maxStreams {
		t.Errorf("the server took on %d calls", asked)
	}
	told := wantOthersServed(t, s, by)
	wantPeak(t, s, heldPeak)
	wantStop(t, s)
	s.Spawn()
	s.WaitReady()
	counted(t, services(t, s.GRPCAddr, 1)[0], othersKey, told)
}

// askForever asks until the server has taken nothing for a while.
func askForever(c *rawClient, request []byte) error {
	err := c.greet(maxWindow)
	for err == nil {
		if err = c.SetWriteDeadline(time.Now().Add(3 * time.Second)); err == nil {
			err = c.call(plusonev1.CounterService_BatchGet_FullMethodName, request, math.MaxInt)
		}
	}
	return err
}

// A client that reads, but lets the server send nothing of the answers, can have it hold as many as a connection may
// have calls, and no more memory than a buffer of a fitting size for each.
func TestClientsThatOpenNoWindow(t *testing.T) {
	t.Parallel()
	s, by := serveOthers(t)
	request := cachedBatch(t, by, 300, 100)
	c := dialRaw(t, s.GRPCAddr)
	go func() { _, _ = io.Copy(io.Discard, c) }() // ends with the connection
	if err := c.greet(0); err != nil {
		t.Fatal(err)
	}
	for range maxStreams {
		if err := c.call(plusonev1.CounterService_BatchGet_FullMethodName, request, math.MaxInt); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, "all answers are made", func() bool {
		return startedCalls(t, s, "BatchGet") >= maxStreams && s.Metric("plusone_server_in_flight_requests") == 0
	})
	wantOthersServed(t, s, by)
	wantPeak(t, s, heldPeak)
	wantStop(t, s)
}

// Clients that say nothing, or half of a request, take up no place, and cannot keep a server from stopping.
func TestClientsThatNeverFinish(t *testing.T) {
	t.Parallel()
	const clients = 250 // of either kind
	s, by := serveOthers(t)
	goroutines := s.Metric("go_goroutines")
	message := messageOf(t, &plusonev1.IncrementRequest{Key: othersKey})
	for range clients {
		dialRaw(t, s.GRPCAddr)
		c := dialRaw(t, s.GRPCAddr)
		if err := c.greet(maxWindow); err != nil {
			t.Fatal(err)
		}
		if err := c.call(plusonev1.CounterService_Increment_FullMethodName, message, len(message)/2); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, "each half of a request is waited for", func() bool {
		return s.Metric("go_goroutines") >= goroutines+3*clients
	})
	wantOthersServed(t, s, by)
	wantPeak(t, s, overloadPeak)
	dialRaw(t, s.GRPCAddr) // the last one that says nothing, just before the stop
	wantStop(t, s)
}

// othersKey is what well-behaved clients count.
const othersKey = "views/others"

// serveOthers starts a server with few places, and connects a client that behaves.
func serveOthers(t *testing.T) (*plusonetest.Instance, plusonev1.CounterServiceClient) {
	t.Helper()
	file := filepath.Join(testproc.TempDir(t), "plusone.db")
	s := serve(t, plusonetest.Variant{}, "--data="+file,
		fmt.Sprint("--max-in-flight=", fewInFlight), fmt.Sprint("--shutdown-timeout=", stopTime))
	by := services(t, s.GRPCAddr, 1)[0]
	forgetPeak(t, s)
	return s, by
}

// wantOthersServed makes as many calls at a time as there are places, all of which must be served.
func wantOthersServed(t *testing.T, s *plusonetest.Instance, by plusonev1.CounterServiceClient) tally {
	t.Helper()
	waitUntil(t, "no call is worked on", func() bool { return s.Metric("plusone_server_in_flight_requests") == 0 })
	others := gather(t, fewInFlight, othersKey, plusonetest.Patience, by)
	others.until("others are served", func(ended [verdicts]int) bool { return ended[served] >= 500 })
	told := others.wantServed()
	t.Logf("others: %v", told)
	counted(t, by, othersKey, told)
	return told
}

// cachedBatch is a request for so many keys, made longer by so much, that is answered from the cache.
func cachedBatch(t *testing.T, by plusonev1.CounterServiceClient, keys, longer int) []byte {
	t.Helper()
	request := &plusonev1.BatchGetRequest{MaxAge: durationpb.New(time.Hour)}
	for i := range keys {
		request.Keys = append(request.Keys, fmt.Sprint("views/batch/", i, strings.Repeat("x", longer)))
	}
	if _, err := by.BatchGet(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	return messageOf(t, request)
}

// wantStop stops a server that clients hold up.
func wantStop(t *testing.T, s *plusonetest.Instance) {
	t.Helper()
	began := time.Now()
	s.Signal(syscall.SIGTERM)
	if !s.WaitExit(stopTime + greetingTime + stopSlack) {
		t.Fatalf("the server does not stop within %v", stopTime+greetingTime+stopSlack)
	}
	t.Logf("the stop took %v", time.Since(began).Round(time.Millisecond))
}

// startedCalls is how many calls of a method a server has begun to work on.
func startedCalls(t testing.TB, s *plusonetest.Instance, method string) (n int) {
	t.Helper()
	_, page := s.Page("/metrics")
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "plusone_grpc_server_started_total{") || !strings.Contains(line, `"`+method+`"`) {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &value); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		n += int(value)
	}
	return n
}
