//go:build !linux

package connlimit

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only Linux knows such a time.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
