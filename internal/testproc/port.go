package testproc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken from below the range from which systems take those of outgoing connections, so that a
// server that was killed finds its port still free.
const (
	firstPort = 10_000
	portCount = 10_000
	// BusOffset is the distance from the port of a Redis Cluster node to that of its bus. It is at least
	// portCount, so no server's port is another's bus port.
	BusOffset = 10_000
)

// Port is a TCP port of 127.0.0.1 that no other user of this package has, in any process, until it is
// released.
type Port struct {
	Number int
	// lock is the UDP port of the same number, which no server here uses: holding it is the
	// reservation, and the system ends it with the process.
	lock net.PacketConn
}

// ReservePort reserves a port that is free, as is the one at BusOffset above it.
func ReservePort() (*Port, error) {
	var last error
	for range 100 {
		p, err := tryPort(firstPort + rand.IntN(portCount))
		if err == nil {
			return p, nil
		}
		last = err
	}
	return nil, fmt.Errorf("no free port: %w", last)
}

func tryPort(number int) (*Port, error) {
	lock, err := net.ListenPacket("udp", localAddr(number))
	if err != nil {
		return nil, err
	}
	for _, n := range []int{number, number + BusOffset} {
		l, err := net.Listen("tcp", localAddr(n))
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	return &Port{Number: number, lock: lock}, nil
}

// Addr is the port's address.
func (p *Port) Addr() string { return localAddr(p.Number) }

// Release ends the reservation.
func (p *Port) Release() error { return p.lock.Close() }

func localAddr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
