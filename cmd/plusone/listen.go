package main

import (
	"context"
	"fmt"
	"net"
)

// resolve resolves a TCP address, and refuses one off loopback unless insecure is set.
func resolve(flag, address string, insecure bool) (*net.TCPAddr, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("%s: %v", flag, err)}
	}
	if !insecure && !addr.IP.IsLoopback() {
		return nil, &usageError{fmt.Sprintf("%s %s is not a loopback address, and TLS and authentication do not exist yet: "+
			"whoever reaches it can change every counter. To listen there all the same, set --insecure", flag, address)}
	}
	return addr, nil
}

// listen listens on a resolved address: the one that was checked, whatever its name resolves to by now.
func listen(ctx context.Context, flag string, addr *net.TCPAddr) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return listener, nil
}

// usageError is about the command line, and found only when the command runs.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }
