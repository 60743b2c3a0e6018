package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/reload"
	"github.com/plusone-dev/plusone/server"
)

// entrance is what callers pass before they are served.
type entrance struct {
	ports *ports
	auth  *auth.Authenticator // nil lets everyone do everything
	files *reload.Metrics
}

func (c *serveCommand) openEntrance(ctx context.Context, registry *prometheus.Registry, logger *slog.Logger) (*entrance, error) {
	e := &entrance{files: reload.NewMetrics(registry)}
	var err error
	if e.ports, err = c.listenFlags.open(ctx, c.TLSClientCA, registry, e.files, logger); err != nil {
		return nil, err
	}
	if e.auth, err = c.accessFlags.open(ctx, e.files, logger); err != nil {
		return nil, errors.Join(err, e.ports.close())
	}
	return e, nil
}

// authenticator is nil, and not a nil in an interface, if there is none.
func (e *entrance) authenticator() server.Authenticator {
	if e.auth == nil {
		return nil
	}
	return e.auth
}

func (e *entrance) close() error {
	if e.auth != nil {
		e.auth.Close()
	}
	return e.ports.close()
}
