package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	_ "google.golang.org/grpc/health" // round robin skips servers that report NOT_SERVING
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// serviceConfig spreads calls over all servers that are healthy as a whole. A server without a health service
// counts as healthy.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}`

// maxRequestBytes is the size of the largest valid request: an import of 10,000 likes, each with the tag and
// length of the like (3), of its key (3), its actor (3) and its moment (2), a key of 256, an actor of 128 and the moment (12), and
// a request id of 128 with its tag and length (3). gRPC on the server refuses what is much larger before
// plusone sees it, as if the server were overloaded, and so in a way that would leave a change in doubt.
const maxRequestBytes = 10_000*(3+3+256+3+128+2+12) + 3 + 128

const notUTF8 = "must be UTF-8"

const methodBatch = "BatchIncrement"

// Client calls plusone's servers. It is safe for concurrent use.
type Client struct {
	conn  *grpc.ClientConn
	rpc   plusonev1.CounterServiceClient
	admin plusonev1.AdminServiceClient
	retry retrier
	close func() error
}

// Dial makes a Client of the servers at target: a host and port, or a gRPC target name such as
// "unix:///run/plusone.sock". A host name is looked up in DNS, and all its addresses are used. Dial does not
// connect; the first call does. It fails if the target cannot be parsed or an option is out of range. Close
// the Client after use.
func Dial(target string, opts ...Option) (*Client, error) {
	if target == "" {
		return nil, errors.New("plusone: target is empty")
	}
	config, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(config.credentials),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			// gRPC's own waits grow to 2 minutes, far longer than the restart of a server takes.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			// A host that vanished is noticed within 40 s, not after the kernel's quarter of an hour.
			Time:    30 * time.Second,
			Timeout: 10 * time.Second,
		}),
	}, append(config.dialOptions, grpc.WithDisableRetry())...)...)
	if err != nil {
		return nil, fmt.Errorf("plusone: dial: %w", err)
	}
	closed := make(chan struct{})
	return &Client{
		conn:  conn,
		rpc:   plusonev1.NewCounterServiceClient(conn),
		admin: plusonev1.NewAdminServiceClient(conn),
		retry: retrier{
			timeout:        config.timeout,
			attemptTimeout: config.attemptTimeout,
			idLifetime:     config.dedupeWindow * 4 / 5,
			closed:         closed,
		},
		close: sync.OnceValue(func() error {
			close(closed)
			return conn.Close()
		}),
	}, nil
}

// Close ends all calls, which return ErrClosed, and closes all connections. It may be called again, and
// returns what it returned first.
func (c *Client) Close() error { return c.close() }

// Increment adds delta, which is not 0 and by default at most 10^12 either way, to the counter named key. The
// outcome is Applied, with OncePer also AlreadyCounted, with WithRequestID also Duplicate.
//
// Errors: ErrInDoubt: repeat the call with WithRequestID(Error.RequestID). Else this call counted nothing:
// ErrUnavailable, ErrOverloaded: try later. ErrInvalid, ErrOverflow, ErrRequestIDReused: mend the caller.
// ErrRequestIDExpired, ErrRequestIDEarly: mend the clock, unless the id was the caller's and old. ErrClosed,
// context.Canceled and context.DeadlineExceeded: as they say.
func (c *Client) Increment(ctx context.Context, key string, delta int64, opts ...IncrementOption) (Receipt, error) {
	req := &plusonev1.IncrementRequest{Key: key, Delta: &delta}
	for _, opt := range opts {
		opt.applyIncrement(req)
	}
	ownID := req.RequestId == ""
	if ownID {
		req.RequestId = newRequestID()
	}
	const method = "Increment"
	switch {
	case !utf8.ValidString(req.RequestId):
		return Receipt{}, refuse(method, req.RequestId, "request_id", notUTF8)
	case !utf8.ValidString(req.Key):
		return Receipt{}, refuse(method, req.RequestId, "key", notUTF8)
	case !utf8.ValidString(req.Actor):
		return Receipt{}, refuse(method, req.RequestId, "actor", notUTF8)
	}
	return invoke(ctx, &c.retry, method, req.RequestId, c.rpc.Increment, req,
		func(resp *plusonev1.IncrementResponse) (Receipt, error) { return receipt(resp, ownID) })
}

// BatchIncrement adds 1 to 10,000 entries under one request id; entries of one key are summed. Every entry is
// counted exactly once. The outcome is Applied, with WithRequestID also Duplicate.
//
// Errors are those of Increment and are about the batch as a whole, which is refused if any entry is. On a
// Redis Cluster a batch is atomic only per shard: ErrInDoubt may then mean that a part was counted, and
// repeating it counts the rest.
func (c *Client) BatchIncrement(ctx context.Context, entries []Entry, opts ...BatchOption) (Receipt, error) {
	req := &plusonev1.BatchIncrementRequest{Entries: make([]*plusonev1.BatchEntry, len(entries))}
	for _, opt := range opts {
		opt.applyBatch(req)
	}
	ownID := req.RequestId == ""
	if ownID {
		req.RequestId = newRequestID()
	}
	if !utf8.ValidString(req.RequestId) {
		return Receipt{}, refuse(methodBatch, req.RequestId, "request_id", notUTF8)
	}
	batch := make([]plusonev1.BatchEntry, len(entries)) // at once, instead of thousands of small pieces
	for i, e := range entries {
		if !utf8.ValidString(e.Key) {
			return Receipt{}, refuse(methodBatch, req.RequestId, fmt.Sprintf("entries[%d].key", i), notUTF8)
		}
		batch[i].Key, batch[i].Delta = e.Key, e.Delta
		req.Entries[i] = &batch[i]
	}
	return invoke(ctx, &c.retry, methodBatch, req.RequestId, c.rpc.BatchIncrement, req,
		func(resp *plusonev1.BatchIncrementResponse) (Receipt, error) { return receipt(resp, ownID) })
}

// Get reads the counter named key. A key never seen is 0.
//
// Errors: ErrUnavailable, ErrOverloaded: try later. ErrInvalid: mend the caller. ErrClosed,
// context.Canceled and context.DeadlineExceeded: as they say.
func (c *Client) Get(ctx context.Context, key string, opts ...ReadOption) (Count, error) {
	const method = "Get"
	if !utf8.ValidString(key) {
		return Count{}, refuse(method, "", "key", notUTF8)
	}
	o := newReadOptions(opts)
	req := &plusonev1.GetRequest{Key: key, MaxAge: o.maxAge, MinAsOf: o.minAsOf}
	return invoke(ctx, &c.retry, method, "", c.rpc.Get, req,
		func(resp *plusonev1.GetResponse) (Count, error) { return count(resp.GetCount(), key) })
}

// BatchGet reads 1 to 1,000 counters and returns their counts in the order of keys. Errors are those of Get.
func (c *Client) BatchGet(ctx context.Context, keys []string, opts ...ReadOption) ([]Count, error) {
	const method = "BatchGet"
	if err := refuseKeys(method, keys); err != nil {
		return nil, err
	}
	o := newReadOptions(opts)
	req := &plusonev1.BatchGetRequest{Keys: keys, MaxAge: o.maxAge, MinAsOf: o.minAsOf}
	return invoke(ctx, &c.retry, method, "", c.rpc.BatchGet, req,
		func(resp *plusonev1.BatchGetResponse) ([]Count, error) { return counts(resp.GetCounts(), keys) })
}

// invoke calls an rpc and reads its answer, retrying as r does. An answer that cannot be read is a failure
// like any other, so that a change is then in doubt.
func invoke[Request proto.Message, Response, Result any](
	ctx context.Context, r *retrier, method, requestID string,
	rpc func(context.Context, Request, ...grpc.CallOption) (Response, error), req Request,
	read func(Response) (Result, error),
) (Result, error) {
	var result Result
	if proto.Size(req) > maxRequestBytes {
		return result, refuse(method, requestID, "", "request is larger than any valid one")
	}
	err := r.run(ctx, method, requestID, func(ctx context.Context) (bool, error) {
		// gRPC fills this in once it has opened a stream on a connection: without one nothing has
		// reached a server.
		var server peer.Peer
		resp, err := rpc(ctx, req, grpc.Peer(&server))
		if err == nil {
			result, err = read(resp)
		}
		return server.Addr != nil, err
	})
	return result, err
}
