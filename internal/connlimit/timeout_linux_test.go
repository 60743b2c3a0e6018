package connlimit

import (
	"net"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// A client that does not read is cut off by the system.
func TestUserTimeout(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := Listen(inner, "grpc", 1, NewMetrics(prometheus.NewRegistry()))
	defer listener.Close()
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wrapped, ok := conn.(*counted)
	if !ok {
		t.Fatal("it is not counted")
	}
	tcp, ok := wrapped.Conn.Conn.(*net.TCPConn)
	if !ok {
		t.Fatal("it is no TCP connection")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		if err != nil || int64(got) != userTimeout.Milliseconds() {
			t.Errorf("it is %d ms, %v", got, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
