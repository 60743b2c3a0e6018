package main

import (
	"context"
	"fmt"
	"net"
)

// resolve resolves a TCP address, and refuses one off loopback if something is missing that protects it.
func resolve(flag, address, missing string) (*net.TCPAddr, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("%s: %v", flag, err)}
	}
	if missing != "" && !addr.IP.IsLoopback() {
		return nil, &usageError{fmt.Sprintf("%s %s is not a loopback address, and there is no %s. "+
			"To listen there all the same, set --insecure", flag, address, missing)}
	}
	return addr, nil
}

// Protections of an address off loopback.
const (
	missingTLS            = "TLS (--tls-cert, --tls-key)"
	missingAuthentication = "authentication (--tokens-file, --jwt-jwks, --jwt-hs256-file or --tls-client-ca)"
)

// missing are the protections that are not there, empty if there is nothing to complain of.
func missing(insecure, tls, authentication bool) string {
	switch {
	case insecure, tls && authentication:
		return ""
	case tls:
		return missingAuthentication
	case authentication:
		return missingTLS
	default:
		return missingTLS + " and no " + missingAuthentication
	}
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
