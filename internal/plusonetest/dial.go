package plusonetest

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/plusone-dev/plusone/client"
)

// Dial makes a client of servers, as if one name resolved to all of them as they are now. It fails the test.
func Dial(t testing.TB, servers []*Instance, opts ...client.Option) *client.Client {
	t.Helper()
	addrs := make([]string, len(servers))
	for i, s := range servers {
		addrs[i] = s.GRPCAddr
	}
	return DialAddrs(t, addrs, opts...)
}

// DialAddrs is Dial by addresses, which may be those of proxies. It fails the test.
func DialAddrs(t testing.TB, addrs []string, opts ...client.Option) *client.Client {
	t.Helper()
	var state resolver.State
	for _, addr := range addrs {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	r := manual.NewBuilderWithScheme("servers")
	r.InitialState(state)
	// What the caller sets comes last, so that it may be less patient.
	opts = append([]client.Option{client.WithTimeout(Patience), client.WithDialOptions(grpc.WithResolvers(r))}, opts...)
	c, err := client.Dial("servers:///all", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
