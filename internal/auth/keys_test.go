package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	testIssuer   = "https://issuer.example"
	testAudience = "plusone"
)

// signer signs tokens by a key of one algorithm.
type signer struct {
	method jwt.SigningMethod
	id     string
	key    any
}

func (s signer) sign(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(s.method, claims)
	if s.id != "" {
		token.Header["kid"] = s.id
	}
	text, err := token.SignedString(s.key)
	must(t, err)
	return text
}

// goodClaims are those of a token that is taken, changed by some, or without those that are nil.
func goodClaims(changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": testIssuer, "aud": testAudience, "sub": "user:7", "exp": time.Now().Add(time.Hour).Unix(),
		"scope": "openid read write", "namespaces": []string{"views", "likes*"},
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// rsaSigner has always the same key, which takes a while to make.
func rsaSigner(t testing.TB) signer {
	t.Helper()
	key, err := rsaKey()
	must(t, err)
	return signer{jwt.SigningMethodRS256, "r", key}
}

func ecSigner(t *testing.T, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return signer{jwt.SigningMethodES256, id, key}
}

func edSigner(t *testing.T, id string) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return signer{jwt.SigningMethodEdDSA, id, key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwkOf is the public key of a signer.
func jwkOf(s signer) map[string]any {
	k := map[string]any{"kid": s.id, "use": "sig", "alg": s.method.Alg()}
	switch key := s.key.(type) {
	case *rsa.PrivateKey:
		k["kty"], k["n"], k["e"] = "RSA", b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes())
	case *ecdsa.PrivateKey:
		point, _ := key.PublicKey.Bytes()
		k["kty"], k["crv"], k["x"], k["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case ed25519.PrivateKey:
		k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", b64([]byte(key[32:]))
	}
	return k
}

func jwks(t testing.TB, keys ...any) []byte {
	t.Helper()
	for i, k := range keys {
		if s, ok := k.(signer); ok {
			keys[i] = jwkOf(s)
		}
	}
	text, err := json.Marshal(map[string]any{"keys": keys})
	must(t, err)
	return text
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file writes a new file.
func file(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, content, 0o600))
	return path
}
