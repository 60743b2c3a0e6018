//go:build !linux

package rawconn

import "net"

// Conn is a connection as it was.
type Conn struct{ net.Conn }

// New returns a connection that takes the place of conn.
func New(conn net.Conn) *Conn { return &Conn{conn} }
