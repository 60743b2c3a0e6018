package security_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// Keys come from a URL whose certificate is trusted, new ones as soon as a token needs them, and stay while it is down.
func TestKeysFromURL(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	var set atomic.Pointer[[]byte]
	first := jwksOf(t, s.key)
	set.Store(&first)
	issuerServer := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(*set.Load())
	}))
	t.Cleanup(issuerServer.Close)
	trusted := s.path("issuer.pem")
	must(t, os.WriteFile(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuerServer.Certificate().Raw}), 0o600))

	s.Instance = plusonetest.Launch(t, binary, "serve", "--grpc-addr=127.0.0.1:0", "--data="+s.path("plusone.db"),
		"--tls-cert="+s.server.Certificate, "--tls-key="+s.server.Key,
		"--jwt-jwks="+issuerServer.URL, "--jwt-issuer="+issuer, "--jwt-audience="+audience)
	if !s.WaitExit(plusonetest.Patience) || !strings.Contains(string(s.Output()), "certificate") {
		t.Fatal("it takes keys from whoever answers")
	}
	s.SetEnv("SSL_CERT_FILE=" + trusted)
	s.Spawn()
	s.WaitReady()
	counters := s.counters(s.tls())
	get := func(token string) string {
		_, err := counters.Get(bearer(t, token), &plusonev1.GetRequest{Key: "views/a"})
		return reasonOf(err)
	}
	old := sign(t, jwt.SigningMethodES256, s.key, claims("user:7"))
	if got := get(old); got != "OK" {
		t.Errorf("a JWT: %s", got)
	}
	young, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	second := []byte(strings.Replace(string(jwksOf(t, young)), `"kid":"k"`, `"kid":"young"`, 1))
	set.Store(&second)
	fresh := jwt.NewWithClaims(jwt.SigningMethodES256, claims("user:7"))
	fresh.Header["kid"] = "young"
	token, err := fresh.SignedString(young)
	must(t, err)
	if got := get(token); got != "OK" {
		t.Errorf("a JWT by a new key: %s", got)
	}
	if got := get(old); got != unauthenticated {
		t.Errorf("a JWT by a key that is gone: %s", got)
	}
	issuerServer.Close()
	if got := get(token); got != "OK" {
		t.Errorf("a JWT while the issuer is down: %s", got)
	}
}
