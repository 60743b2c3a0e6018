package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/plusone-dev/plusone/client"
)

func TestDialRefuses(t *testing.T) {
	t.Parallel()
	for name, dial := range map[string]func() (*client.Client, error){
		"empty target":    func() (*client.Client, error) { return client.Dial("") },
		"malformed":       func() (*client.Client, error) { return client.Dial("%zz") },
		"no credentials":  func() (*client.Client, error) { return client.Dial("a:1", client.WithTransportCredentials(nil)) },
		"timeout":         func() (*client.Client, error) { return client.Dial("a:1", client.WithTimeout(0)) },
		"attempt timeout": func() (*client.Client, error) { return client.Dial("a:1", client.WithAttemptTimeout(-1)) },
		"dedupe window":   func() (*client.Client, error) { return client.Dial("a:1", client.WithDedupeWindow(0)) },
	} {
		if _, err := dial(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, roots := selfSigned(t)
	store := newFakeStore()
	server := serveOn(t, serverOptions{
		network: "tcp", addr: "127.0.0.1:0", creds: credentials.NewServerTLSFromCert(&certificate),
	}, store)

	secure := dial(t, server.addr, client.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "")))
	if _, err := secure.Increment(patient(t), "views/a", 1); err != nil {
		t.Fatal(err)
	}
	plain := dial(t, server.addr, client.WithTimeout(300*time.Millisecond))
	if _, err := plain.Increment(t.Context(), "views/a", 1); err == nil || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("plain text to a TLS server: got %v", err)
	}
	checkCounted(t, store, "views/a", 1, 1)
}

// selfSigned makes a certificate for loopback and the pool that trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
