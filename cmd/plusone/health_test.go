package main_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/testproc"
)

// health tells a server that serves from one that does not.
func TestHealth(t *testing.T) {
	t.Parallel()
	s := start(t, "--data="+testproc.TempDir(t)+"/plusone.db")
	_, port, _ := strings.Cut(s.HTTPAddr, ":")
	// The address is that of the server's setting, so it may be a wildcard.
	for _, addr := range []string{s.HTTPAddr, ":" + port, "0.0.0.0:" + port} {
		if output, code := execute(t, []string{"PLUSONE_HTTP_ADDR=" + addr}, "health"); code != 0 {
			t.Errorf("%s: exit code %d: %s", addr, code, output)
		}
	}
	s.Terminate()
	if output, code := execute(t, nil, "health", "--http-addr="+s.HTTPAddr); code != failed {
		t.Errorf("of a server that has ended: exit code %d, want %d: %s", code, failed, output)
	}
}

// An answer that is not 200 is no health, and a server with a certificate is asked by TLS, whatever its name.
func TestHealthOfOthers(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/healthz":
			w.WriteHeader(http.StatusNotFound)
		case r.TLS == nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	env := []string{"HTTPS_PROXY=127.0.0.1:1", "PLUSONE_TLS_CERT=server.crt"}
	if output, code := execute(t, env, "health", "--http-addr="+secure.Listener.Addr().String()); code != 0 {
		t.Errorf("by TLS: exit code %d: %s", code, output)
	}
	output, code := execute(t, nil, "health", "--http-addr="+plain.Listener.Addr().String())
	if code != failed || !strings.Contains(output, "503") {
		t.Errorf("of a server that stops: exit code %d, want %d: %s", code, failed, output)
	}
}
