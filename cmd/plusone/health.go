package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"
)

// healthTimeout is a little more than a server takes at most to judge itself.
const healthTimeout = 3 * time.Second

// healthCommand asks a server beside it how it is: a container that holds the program alone has no other means to.
type healthCommand struct {
	HTTPAddr string `group:"listen" name:"http-addr" default:"127.0.0.1:8080" help:"Where the server listens for HTTP, as the server was told; of a wildcard, this machine is asked."`
	TLSCert  string `group:"listen" name:"tls-cert" placeholder:"FILE" help:"As the server was told. It is not read: if it is given, HTTPS is spoken."`
}

// run succeeds if the server serves. It fails while the server stops, and if there is none.
func (c *healthCommand) run(ctx context.Context, env environment) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	scheme := "http"
	if c.TLSCert != "" {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+c.HTTPAddr+"/healthz", nil)
	if err != nil {
		return &usageError{fmt.Sprintf("--http-addr: %v", err)}
	}
	// No proxy, whatever the environment says. The certificate is for the name that callers use, not for this address; nothing
	// is sent that another process on the port could not have.
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // G402: see above
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", resp.Status)
	}
	_, err = fmt.Fprintln(env.stdout, "ok")
	return err
}
