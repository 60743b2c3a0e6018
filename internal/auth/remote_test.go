package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/identity"
)

// issuer serves keys over https.
type issuer struct {
	*httptest.Server

	set     atomic.Pointer[[]byte] // nil for an error
	fetches atomic.Int64
}

func newIssuer(t *testing.T, set []byte) *issuer {
	t.Helper()
	i := &issuer{}
	i.set.Store(&set)
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.fetches.Add(1)
		if set := i.set.Load(); set != nil {
			_, _ = w.Write(*set)
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
	}))
	i.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(i.Close)
	return i
}

// verifierOf follows an issuer, at an interval that never ends.
func verifierOf(t *testing.T, i *issuer, log io.Writer) *verifier {
	t.Helper()
	v := &verifier{}
	remote, err := openRemoteKeys(context.Background(), remoteOptions{
		URL: i.URL + "?key=hunter2", Interval: time.Hour, Client: i.Client(), OnChange: v.putTogether,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	must(t, err)
	opened, err := openVerifier(context.Background(), JWTConfig{Issuer: testIssuer, Audience: testAudience, JWKS: file(t, *i.set.Load())}, nil, nil)
	must(t, err)
	opened.file.Close()
	v.parser, v.cache, v.remote = opened.parser, opened.cache, remote
	t.Cleanup(v.close)
	v.putTogether()
	return v
}

// A token with an unknown key brings new ones, but not as often as such tokens come.
func TestUnknownKeyFetches(t *testing.T) {
	t.Parallel()
	old, young := ecSigner(t, "old"), ecSigner(t, "young")
	i := newIssuer(t, jwks(t, old))
	v := verifierOf(t, i, io.Discard)
	set := jwks(t, young)
	i.set.Store(&set)
	token := young.sign(t, goodClaims(nil))
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if _, err := v.verify(context.Background(), token, digest{1}); err != nil {
				t.Errorf("a new key: %v", err)
			}
		})
	}
	calls.Wait()
	for n := range byte(20) {
		_, err := v.verify(context.Background(), ecSigner(t, "unknown").sign(t, goodClaims(nil)), digest{2, n})
		wantRefusal(t, "unknown key", err, identity.ErrUnknownKey)
	}
	if n := i.fetches.Load(); n != 2 {
		t.Errorf("keys were fetched %d times, want twice", n)
	}
	_, err := v.verify(context.Background(), old.sign(t, goodClaims(nil)), digest{3})
	wantRefusal(t, "a key that is gone", err, identity.ErrUnknownKey)
}

// The keys stay when they cannot be fetched, and what is verified stays in the cache when they are the same.
func TestKeysStay(t *testing.T) {
	t.Parallel()
	s := ecSigner(t, "e")
	i := newIssuer(t, jwks(t, s))
	var log bytes.Buffer
	v := verifierOf(t, i, &log)
	token := s.sign(t, goodClaims(nil))
	before := v.keys.Load()
	v.remote.refresh()
	if v.keys.Load() != before {
		t.Error("the same keys are taken for others")
	}
	large, nonsense := append(bytes.Repeat([]byte{' '}, maxJWKSBytes), '{'), []byte("{}")
	for name, set := range map[string]*[]byte{"an error": nil, "a large answer": &large, "nonsense": &nonsense} {
		i.set.Store(set)
		v.remote.refresh()
		if _, err := v.verify(context.Background(), token, digest{1}); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	i.Close()
	v.remote.refresh()
	if _, err := v.verify(context.Background(), token, digest{1}); err != nil {
		t.Errorf("after the end of the server: %v", err)
	}
	if text := log.String(); strings.Count(text, "level=ERROR") != 4 || strings.Contains(text, "hunter2") {
		t.Errorf("the log is\n%s", text)
	}
}

// Nobody is asked whose certificate is not trusted, and no redirect leads away from https.
func TestRemoteIsSecure(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, jwks(t, ecSigner(t, "e")))
	_, err := openRemoteKeys(context.Background(), remoteOptions{URL: i.URL})
	if unknown := (*tls.CertificateVerificationError)(nil); !errors.As(err, &unknown) {
		t.Errorf("error is %v", err)
	}
	plain := httptest.NewServer(i.Config.Handler)
	t.Cleanup(plain.Close)
	away := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(away.Close)
	client := away.Client()
	client.CheckRedirect = checkRedirect
	if _, err := openRemoteKeys(context.Background(), remoteOptions{URL: away.URL, Client: client}); err == nil ||
		!strings.Contains(err.Error(), "away from https") {
		t.Errorf("error is %v", err)
	}
}
