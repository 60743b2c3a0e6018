package chaos_test

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/history"
)

// noIDLoad is what changes without a request id need. The client gives every change an id, so these are sent without it.
type noIDLoad struct {
	servers []plusonev1.CounterServiceClient
	// keys are those that nobody changes now, and of which nothing is in doubt. One caller at a time has a key, and one
	// with a change in doubt is not used again. So a change that is counted twice cannot hide behind one in doubt that
	// was not counted.
	keys chan uint32
}

func (d *deployment) noIDLoad() *noIDLoad {
	l := &noIDLoad{keys: make(chan uint32, noIDKeys)}
	for _, n := range d.nodes {
		conn, err := grpc.NewClient(n.front.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { _ = conn.Close() })
		l.servers = append(l.servers, plusonev1.NewCounterServiceClient(conn))
	}
	for key := range uint32(noIDKeys) {
		l.keys <- keyCount + key
	}
	return l
}

// changeWithoutID sends a change once, and reads the counter. When all keys had a change in doubt, it does nothing.
func (c *caller) changeWithoutID() {
	l := c.load.noID
	var key uint32
	select {
	case key = <-l.keys:
	default:
		return
	}
	delta := 1 + c.rand.Int64N(3)
	op := c.record(history.Event{Kind: history.Change, NoID: true, Entries: []history.Entry{{Key: key, Delta: delta}}})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := l.servers[c.rand.IntN(len(l.servers))].Increment(ctx, &plusonev1.IncrementRequest{Key: keyName(key), Delta: &delta})
	outcome := noIDOutcome(err)
	c.record(history.Event{Kind: history.Answer, Op: op, Outcome: outcome})
	if outcome == history.InDoubt {
		if status.Code(err) == codes.Internal {
			c.load.note(err)
		}
		return
	}
	c.read([]uint32{key}, 0, false)
	l.keys <- key
}

// noIDOutcome is the outcome of a call that nothing repeats: only the server itself can say that it did not count.
func noIDOutcome(err error) history.Outcome {
	if err == nil {
		return history.Applied
	}
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			switch info.GetReason() {
			case "STORE_UNAVAILABLE", "OVERLOADED", "STORE_FULL", "STOPPING":
				return history.Refused
			}
		}
	}
	return history.InDoubt
}
