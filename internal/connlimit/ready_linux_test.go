package connlimit

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
)

// asked is a listener whose connections count how often they are read when they are ready.
type asked struct {
	net.Listener
	times atomic.Int64
}

type askedConn struct {
	*counted
	times *atomic.Int64
}

func (l *asked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if c, ok := conn.(*counted); ok {
		return &askedConn{c, &l.times}, err
	}
	return conn, err
}

func (c *askedConn) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	c.times.Add(1)
	return c.counted.ReadOnReady(size, pool)
}

// gRPC reads from a connection that way, though it is none of its own.
func TestGRPCReadsWhenReady(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := &asked{Listener: Listen(inner, "grpc", 1, NewMetrics(prometheus.NewRegistry()))}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(inner.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if listener.times.Load() == 0 {
		t.Error("gRPC has not asked for it")
	}
}
