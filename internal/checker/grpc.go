package checker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/guard"
)

// maxHeaderBytes bounds the headers of an answer.
const maxHeaderBytes = 8 << 10

// connectTimeout is how long it may take to connect. A question that is too late does not stop it: the next one has the
// connection.
const connectTimeout = 5 * time.Second

type grpcAsker struct {
	conn   *grpc.ClientConn
	client guardv1.GuardServiceClient
	config Config
}

func dialGRPC(c Config) (*grpcAsker, error) {
	transport := insecure.NewCredentials()
	if c.Target.Encrypted() {
		transport = credentials.NewTLS(&tls.Config{RootCAs: c.CA, MinVersion: tls.VersionTLS12})
	}
	conn, err := grpc.NewClient("dns:///"+c.Target.Addr(),
		grpc.WithTransportCredentials(transport),
		grpc.WithNoProxy(),
		// How it is asked is for this side to say, not for DNS.
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: breakerOpenFor},
			MinConnectTimeout: connectTimeout,
		}),
		// A host that is gone without a word is noticed within the timeout, not when TCP gives up after a quarter of
		// an hour. More frequent pings than this, which servers may refuse, are not needed for that.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: connectTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	conn.Connect() // so that the first question need not wait for it
	return &grpcAsker{conn: conn, client: guardv1.NewGuardServiceClient(conn), config: c}, nil
}

func (a *grpcAsker) ask(ctx context.Context, q guard.Question) (*guardv1.CheckResponse, error) {
	if bearer := a.config.bearer(); bearer != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", bearer)
	}
	var from peer.Peer
	resp, err := a.client.Check(ctx, requestOf(q), grpc.Peer(&from))
	if err == nil {
		return resp, nil
	}
	st := status.Convert(err)
	if from.Addr == nil { // there was no connection, so these are not words of the checker
		return nil, errors.New(st.Message())
	}
	return nil, fmt.Errorf("code %v", st.Code())
}

func (a *grpcAsker) close() error { return a.conn.Close() }

func requestOf(q guard.Question) *guardv1.CheckRequest {
	return &guardv1.CheckRequest{Method: q.Method, Caller: q.Caller, Actor: q.Actor, Namespace: q.Namespace, Token: q.Token}
}
