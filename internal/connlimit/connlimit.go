// Package connlimit bounds the connections of a listener.
package connlimit

import (
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/rawconn"
)

// userTimeout is for how long a client may leave unread what was sent, before the system closes the connection: one that
// sends and never reads would hold memory for as long as it likes.
const userTimeout = 20 * time.Second

// Metrics are those of all listeners, by their names.
type Metrics struct {
	open    *prometheus.GaugeVec
	refused *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	labels := []string{"listener"}
	m := &Metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_connections_open", Help: "Connections that are open, by listener.",
		}, labels),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_connections_refused_total", Help: "Connections closed at once because there were too many, by listener.",
		}, labels),
	}
	r.MustRegister(m.open, m.refused)
	return m
}

// Listen bounds the connections of a listener, which name names, to limit. Further ones are closed as soon as they are made:
// one that waited would look like a server that hangs.
func Listen(listener net.Listener, name string, limit int, m *Metrics) net.Listener {
	return &limited{
		Listener: listener, slots: make(chan struct{}, limit),
		open: m.open.WithLabelValues(name), refused: m.refused.WithLabelValues(name),
	}
}

type limited struct {
	net.Listener
	slots   chan struct{} // holds an element for each open connection
	open    prometheus.Gauge
	refused prometheus.Counter
}

// Accept returns the next connection within the limit.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			if tcp, ok := conn.(*net.TCPConn); ok {
				// gRPC sets it where it gets the connection itself. One that is closed already needs none.
				_ = setUserTimeout(tcp, userTimeout)
			}
			l.open.Inc()
			return &counted{Conn: rawconn.New(conn), close: sync.OnceValue(func() error {
				err := conn.Close()
				l.open.Dec()
				<-l.slots
				return err
			})}, nil
		default:
			l.refused.Inc()
			_ = conn.Close() // nobody would learn of it
		}
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	*rawconn.Conn
	close func() error
}

// Close closes the connection, once.
func (c *counted) Close() error { return c.close() }
