package main_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// A worker shows its metrics by TLS, and off loopback in no other way.
func TestWorkerByTLS(t *testing.T) {
	t.Parallel()
	args := append([]string{"flush"}, shardedArgs(redistest.Start(t).URL(), pgtest.NewDatabase(t))...)
	if output, code := execute(t, nil, append(args, "--http-addr=:0")...); code != misuse || !strings.Contains(output, "there is no TLS") {
		t.Errorf("exit code %d:\n%s", code, output)
	}
	authority := certtest.NewAuthority(t)
	files := authority.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, testproc.TempDir(t), "server")
	worker := launch(t, append(args, "--tls-cert="+files.Certificate, "--tls-key="+files.Key)...)
	worker.WaitReady()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: patience}
	resp, err := client.Get("https://" + worker.HTTPAddr + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	must(t, err)
	for _, metric := range []string{"plusone_flush_windows_total", "plusone_tls_certificate_expiry_timestamp_seconds", "plusone_connections_open"} {
		if !strings.Contains(string(page), metric) {
			t.Errorf("there is no %s", metric)
		}
	}
	worker.Terminate()
}
