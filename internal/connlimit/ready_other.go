//go:build !linux

package connlimit

import "net"

// ready is nothing: gRPC reads from a connection of Linux alone when there is something to read.
type ready struct{}

func newReady(net.Conn) *ready { return nil }
