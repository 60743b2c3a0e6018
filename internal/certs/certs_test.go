package certs_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/certs"
	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// handshake greets a server of a configuration, and returns its certificate, or what either side complained of.
func handshake(t *testing.T, server, client *tls.Config) ([]byte, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			secure := tls.Server(conn, server)
			if err = secure.Handshake(); err == nil {
				_, err = secure.Write([]byte("x"))
			}
			_ = secure.Close()
		}
		served <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	client = client.Clone()
	client.ServerName = "127.0.0.1"
	secure := tls.Client(conn, client)
	if err = secure.Handshake(); err == nil {
		_, err = io.ReadFull(secure, make([]byte, 1)) // in TLS 1.3, what the server says to the client's certificate
	}
	_ = conn.Close()
	if err = errors.Join(err, <-served); err != nil {
		return nil, err
	}
	return secure.ConnectionState().PeerCertificates[0].Raw, nil
}

func TestServer(t *testing.T) {
	t.Parallel()
	ca := certtest.NewAuthority(t)
	dir := testproc.TempDir(t)
	first, second := ca.Issue(t, certtest.Leaf{Name: "127.0.0.1"}), ca.Issue(t, certtest.Leaf{Name: "127.0.0.1", To: time.Now().Add(2 * time.Hour)})
	files := first.Write(t, dir, "server")
	registry := prometheus.NewRegistry()
	c, err := certs.Open(certs.Options{Certificate: files.Certificate, Key: files.Key, Registry: registry})
	must(t, err)
	t.Cleanup(c.Close)
	client := &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"h2", "http/1.1"}}
	want := func(pair certtest.Pair) {
		t.Helper()
		wanted := pair.TLS(t).Leaf
		for _, config := range []*tls.Config{c.GRPC(), c.HTTP()} {
			got, err := handshake(t, config, client)
			if err != nil || !bytes.Equal(got, wanted.Raw) {
				t.Errorf("it is another certificate: %v", err)
			}
		}
		families, err := registry.Gather()
		must(t, err)
		if got := families[0].Metric[0].GetGauge().GetValue(); got != float64(wanted.NotAfter.Unix()) {
			t.Errorf("it expires at %v, want %v", got, wanted.NotAfter)
		}
	}
	want(first)
	must(t, os.WriteFile(files.Certificate, second.Certificate, 0o600)) // without its key
	if err := c.Reload(); err == nil {
		t.Error("half a pair is in force")
	}
	want(first)
	must(t, os.WriteFile(files.Key, second.Key, 0o600))
	must(t, c.Reload())
	want(second)

	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1":          func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"another protocol": func(c *tls.Config) { c.NextProtos = []string{"spdy/3"} },
		"weak ciphers": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}
		},
	} {
		weak := client.Clone()
		change(weak)
		if _, err := handshake(t, c.GRPC(), weak); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestClients(t *testing.T) {
	t.Parallel()
	ca, other := certtest.NewAuthority(t), certtest.NewAuthority(t)
	dir := testproc.TempDir(t)
	files := ca.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, dir, "server")
	authority := ca.Write(t, dir)
	c, err := certs.Open(certs.Options{Certificate: files.Certificate, Key: files.Key, ClientCA: authority, Registry: prometheus.NewRegistry()})
	must(t, err)
	t.Cleanup(c.Close)
	client := func(pairs ...certtest.Pair) *tls.Config {
		config := &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"h2", "http/1.1"}}
		for _, p := range pairs {
			pair := p.TLS(t)
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return config
	}
	own, foreign := ca.Issue(t, certtest.Leaf{Name: "web"}), other.Issue(t, certtest.Leaf{Name: "web"})
	expired := ca.Issue(t, certtest.Leaf{Name: "web", From: time.Now().Add(-2 * time.Hour), To: time.Now().Add(-time.Hour)})
	check := func(name string, config *tls.Config, want bool) {
		t.Helper()
		if _, err := handshake(t, c.GRPC(), config); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	check("no certificate", client(), false)
	check("own", client(own), true)
	check("foreign", client(foreign), false)
	check("expired", client(expired), false)
	if _, err := handshake(t, c.HTTP(), client()); err != nil {
		t.Errorf("HTTP without a certificate: %v", err)
	}
	must(t, os.WriteFile(authority, other.PEM, 0o600))
	must(t, c.Reload())
	check("own, no longer trusted", client(own), false)
	check("foreign, now trusted", client(foreign), true)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ca := certtest.NewAuthority(t)
	dir := testproc.TempDir(t)
	good := ca.Issue(t, certtest.Leaf{Name: "127.0.0.1"})
	files := good.Write(t, dir, "good")
	other := ca.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, dir, "other")
	expired := ca.Issue(t, certtest.Leaf{Name: "127.0.0.1", From: time.Now().Add(-2 * time.Hour), To: time.Now().Add(-time.Hour)}).Write(t, dir, "expired")
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	for name, test := range map[string]struct {
		o    certs.Options
		want string
	}{
		"pair that does not match": {certs.Options{Certificate: files.Certificate, Key: other.Key}, "does not match"},
		"no certificate":           {certs.Options{Certificate: empty, Key: files.Key}, "tls_certificate file"},
		"no key":                   {certs.Options{Certificate: files.Certificate, Key: empty}, "tls_certificate file"},
		"expired":                  {certs.Options{Certificate: expired.Certificate, Key: expired.Key}, "expired at"},
		"no authority":             {certs.Options{Certificate: files.Certificate, Key: files.Key, ClientCA: empty}, "no certificate in PEM"},
		"a leaf for an authority":  {certs.Options{Certificate: files.Certificate, Key: files.Key, ClientCA: files.Certificate}, "not that of an authority"},
		"a key for an authority":   {certs.Options{Certificate: files.Certificate, Key: files.Key, ClientCA: files.Key}, "certificates only"},
	} {
		test.o.Registry = prometheus.NewRegistry()
		c, err := certs.Open(test.o)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
}
