package server

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// healthTimeout bounds one health check.
const healthTimeout = 2 * time.Second

const indexPage = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>plusone</title>
<h1>plusone</h1>
<p>A counter service. Its API is gRPC, plusone.v1.CounterService and plusone.v1.ReportService, on another port.</p>
<ul>
<li><a href="/healthz">health</a></li>
<li><a href="/metrics">metrics</a></li>
</ul>
</html>
`

// NewMonitor returns an HTTP server with the endpoints of a Server, for a process that serves no gRPC. It is
// healthy while it runs; mode is shown by /healthz. It adds a metric to the registry, which must not have it.
func NewMonitor(registry *prometheus.Registry, logger *slog.Logger, mode string) *http.Server {
	suppressed := newLogsSuppressed()
	registry.MustRegister(suppressed)
	return newHTTPServer(registry, logger, mode, suppressed, func(context.Context) bool { return true })
}

// newHTTPServer serves metrics, health and a page that says what this is. healthy says whether the server
// can serve.
func newHTTPServer(registry *prometheus.Registry, logger *slog.Logger, mode string, suppressed prometheus.Counter,
	healthy func(context.Context) bool,
) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(indexPage)) // a reader that has gone needs no answer
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		body := strings.TrimSpace("ok "+mode) + "\n"
		if !healthy(ctx) {
			w.WriteHeader(http.StatusServiceUnavailable)
			body = "unavailable\n"
		}
		_, _ = w.Write([]byte(body)) // as above
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, // a scrape costs more than a call
		Timeout:             10 * time.Second,
	}))
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(&httpLog{logger: logger, suppressed: suppressed}, "", 0),
	}
}

// httpLog takes what net/http complains of, which strangers can cause as often as they like.
type httpLog struct {
	logger     *slog.Logger
	suppressed prometheus.Counter
	limit      lineLimit
}

// Write logs a line, or leaves it out if there were too many.
func (l *httpLog) Write(line []byte) (int, error) {
	if suppressed, ok := l.limit.take(time.Now()); ok {
		l.logger.Warn("HTTP connection failed", "cause", string(bytes.TrimSpace(line)), "suppressed_before", suppressed)
	} else {
		l.suppressed.Inc()
	}
	return len(line), nil
}
