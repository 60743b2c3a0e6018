package auth

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/plusone-dev/plusone/internal/identity"
)

// openJWT takes tokens of the JWKS and, if it is not empty, of the secret.
func openJWT(t testing.TB, set, secret []byte) *Authenticator {
	t.Helper()
	c := JWTConfig{Issuer: testIssuer, Audience: testAudience, Leeway: 30 * time.Second}
	if set != nil {
		c.JWKS = file(t, set)
	}
	if secret != nil {
		c.HS256File = file(t, secret)
	}
	a, err := Open(context.Background(), Config{JWT: c})
	must(t, err)
	t.Cleanup(a.Close)
	return a
}

func (a *Authenticator) bearer(token string) (*identity.Identity, error) {
	return a.Authenticate(context.Background(), []string{"Bearer " + token}, nil)
}

func wantRefusal(t *testing.T, name string, err error, want identity.RefusalError) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: refusal is %v, want %v", name, err, want)
	}
}

func TestJWTAlgorithms(t *testing.T) {
	t.Parallel()
	r, e, d := rsaSigner(t), ecSigner(t, "e"), edSigner(t, "d")
	secret := signer{jwt.SigningMethodHS256, "", bytes.Repeat([]byte{7}, 32)}
	a := openJWT(t, jwks(t, r, e, d), append(bytes.Repeat([]byte{7}, 32), '\n'))
	for _, s := range []signer{r, e, d, secret, {e.method, "", e.key}} {
		token := s.sign(t, goodClaims(nil))
		for range 2 { // the second time from the cache
			who, err := a.bearer(token)
			must(t, err)
			if who.Name != "jwt:user:7" || who.Actor != "user:7" || who.Scopes != identity.Read|identity.Write ||
				strings.Join(who.Namespaces, " ") != "views likes*" {
				t.Errorf("%s: %+v", s.method.Alg(), who)
			}
		}
	}
}

// Whatever a token says of itself, it is verified by a key of the kind of its algorithm, or not taken.
func TestJWTForgeries(t *testing.T) {
	t.Parallel()
	r, e, d := rsaSigner(t), ecSigner(t, "e"), edSigner(t, "d")
	a := openJWT(t, jwks(t, r, e, d), bytes.Repeat([]byte{7}, 32))
	private, err := rsaKey()
	must(t, err)
	public := &private.PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	good := r.sign(t, goodClaims(nil))
	parts := strings.Split(good, ".")
	other := strings.Split(r.sign(t, goodClaims(jwt.MapClaims{"sub": "root", "scope": "admin"})), ".")
	critical := jwt.NewWithClaims(e.method, goodClaims(nil))
	critical.Header["crit"], critical.Header["kid"] = []string{"b64"}, "e"
	withCrit, err := critical.SignedString(e.key)
	must(t, err)
	set := jwks(t, r, e, d)
	for name, test := range map[string]struct {
		token string
		want  identity.RefusalError
	}{
		"none":                {signer{jwt.SigningMethodNone, "r", jwt.UnsafeAllowNoneSignatureType}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"none without a kid":  {signer{jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"None":                {b64([]byte(`{"alg":"None"}`)) + "." + parts[1] + ".", identity.ErrWrongAlgorithm},
		"public key as DER":   {signer{jwt.SigningMethodHS256, "r", der}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"public key as PEM":   {signer{jwt.SigningMethodHS256, "r", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"set as a secret":     {signer{jwt.SigningMethodHS256, "", set}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"modulus as a secret": {signer{jwt.SigningMethodHS256, "r", public.N.Bytes()}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"HS512":               {signer{jwt.SigningMethodHS512, "", bytes.Repeat([]byte{7}, 32)}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"RS512":               {signer{jwt.SigningMethodRS512, "r", r.key}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"PS256":               {signer{jwt.SigningMethodPS256, "r", r.key}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"another key":         {signer{e.method, "e", ecSigner(t, "").key}.sign(t, goodClaims(nil)), identity.ErrWrongSignature},
		"key of another kind": {signer{e.method, "r", e.key}.sign(t, goodClaims(nil)), identity.ErrUnknownKey},
		"unknown key":         {signer{e.method, "x", e.key}.sign(t, goodClaims(nil)), identity.ErrUnknownKey},
		"other claims":        {parts[0] + "." + other[1] + "." + parts[2], identity.ErrWrongSignature},
		"no signature":        {parts[0] + "." + parts[1] + ".", identity.ErrWrongSignature},
		"critical extension":  {withCrit, identity.ErrWrongAlgorithm},
		"nonsense":            {"a.b.c", identity.ErrMalformed},
		"no claims":           {parts[0] + ".." + parts[2], identity.ErrMalformed},
		"no JWT":              {"plusone_abc", identity.ErrUnknownToken},
		"long":                {strings.Repeat("a", maxTokenBytes+1), identity.ErrMalformed},
	} {
		_, err := a.bearer(test.token)
		wantRefusal(t, name, err, test.want)
	}
	for name, header := range map[string][]string{
		"no scheme": {good}, "another scheme": {"Basic " + good}, "twice": {"Bearer " + good, "Bearer " + good}, "empty": {"Bearer "},
		"nothing": {""},
	} {
		_, err := a.Authenticate(context.Background(), header, nil)
		wantRefusal(t, name, err, identity.ErrMalformed)
	}
	if _, err := a.Authenticate(context.Background(), []string{"bearer " + good}, nil); err != nil {
		t.Errorf("a scheme in small letters: %v", err)
	}
	// Without a secret, no HS256 at all.
	_, err = openJWT(t, set, nil).bearer(signer{jwt.SigningMethodHS256, "", bytes.Repeat([]byte{7}, 32)}.sign(t, goodClaims(nil)))
	wantRefusal(t, "HS256 without a secret", err, identity.ErrWrongSignature)
}

func TestJWTClaims(t *testing.T) {
	t.Parallel()
	s := ecSigner(t, "e")
	a := openJWT(t, jwks(t, s), nil)
	now := time.Now()
	for name, test := range map[string]struct {
		claims jwt.MapClaims
		want   identity.RefusalError
	}{
		"expired":                {jwt.MapClaims{"exp": now.Add(-31 * time.Second).Unix()}, identity.ErrExpired},
		"no end":                 {jwt.MapClaims{"exp": nil}, identity.ErrWrongClaims},
		"too early":              {jwt.MapClaims{"nbf": now.Add(time.Minute).Unix()}, identity.ErrWrongClaims},
		"another audience":       {jwt.MapClaims{"aud": "other"}, identity.ErrWrongClaims},
		"no audience":            {jwt.MapClaims{"aud": nil}, identity.ErrWrongClaims},
		"another issuer":         {jwt.MapClaims{"iss": testIssuer + "/"}, identity.ErrWrongClaims},
		"no issuer":              {jwt.MapClaims{"iss": nil}, identity.ErrWrongClaims},
		"no subject":             {jwt.MapClaims{"sub": nil}, identity.ErrWrongClaims},
		"subject with a space":   {jwt.MapClaims{"sub": "a b"}, identity.ErrWrongClaims},
		"long subject":           {jwt.MapClaims{"sub": strings.Repeat("a", 129)}, identity.ErrWrongClaims},
		"actor with a space":     {jwt.MapClaims{"actor": "a b"}, identity.ErrWrongClaims},
		"namespace with a star":  {jwt.MapClaims{"namespaces": []string{"a*b"}}, identity.ErrWrongClaims},
		"namespace with a slash": {jwt.MapClaims{"namespaces": []string{"a/b"}}, identity.ErrWrongClaims},
		"many namespaces":        {jwt.MapClaims{"namespaces": strings.Split(strings.Repeat("a ", 101), " ")[:101]}, identity.ErrWrongClaims},
		"scope as a list":        {jwt.MapClaims{"scope": []string{"read"}}, identity.ErrMalformed},
	} {
		_, err := a.bearer(s.sign(t, goodClaims(test.claims)))
		wantRefusal(t, name, err, test.want)
	}
	for name, test := range map[string]struct {
		claims jwt.MapClaims
		want   identity.Identity
	}{
		"within the leeway": {jwt.MapClaims{"exp": now.Add(-20 * time.Second).Unix()}, identity.Identity{Actor: "user:7", Scopes: identity.Read | identity.Write}},
		"one of several audiences": {
			jwt.MapClaims{"aud": []string{"other", testAudience}},
			identity.Identity{Actor: "user:7", Scopes: identity.Read | identity.Write},
		},
		"another actor": {jwt.MapClaims{"actor": "u7"}, identity.Identity{Actor: "u7", Scopes: identity.Read | identity.Write}},
		"a service":     {jwt.MapClaims{"scope": "service admin report"}, identity.Identity{Scopes: identity.Admin | identity.Report}},
		"a service for one actor": {
			jwt.MapClaims{"scope": "service read", "actor": "u7"}, identity.Identity{Actor: "u7", Scopes: identity.Read},
		},
		"the subject as a service": {
			jwt.MapClaims{"scope": "service read", "actor": "user:7"}, identity.Identity{Actor: "user:7", Scopes: identity.Read},
		},
		"no scope":      {jwt.MapClaims{"scope": nil}, identity.Identity{Actor: "user:7"}},
		"other scopes":  {jwt.MapClaims{"scope": "readwrite Read read:all"}, identity.Identity{Actor: "user:7"}},
		"no namespaces": {jwt.MapClaims{"namespaces": nil}, identity.Identity{Actor: "user:7", Scopes: identity.Read | identity.Write}},
	} {
		who, err := a.bearer(s.sign(t, goodClaims(test.claims)))
		must(t, err)
		if who.Actor != test.want.Actor || who.Scopes != test.want.Scopes {
			t.Errorf("%s: %+v, want %+v", name, who, test.want)
		}
		if who.Personal == strings.HasPrefix(name, "a service") {
			t.Errorf("%s: personal is %v", name, who.Personal)
		}
		if name == "no namespaces" && who.Touches("views") {
			t.Error("a token without namespaces touches some")
		}
	}
}

// A token that was good is refused when it expires, and once its key is gone, although it is in the cache.
func TestJWTForgotten(t *testing.T) {
	t.Parallel()
	old, young := ecSigner(t, "old"), edSigner(t, "young")
	path := file(t, jwks(t, old))
	a, err := Open(context.Background(), Config{JWT: JWTConfig{JWKS: path, Issuer: testIssuer, Audience: testAudience}})
	must(t, err)
	t.Cleanup(a.Close)
	token := old.sign(t, goodClaims(nil))
	for range 2 {
		_, err := a.bearer(token)
		must(t, err)
	}
	must(t, os.WriteFile(path, jwks(t, young), 0o600))
	must(t, a.jwt.file.Reload())
	_, err = a.bearer(token)
	wantRefusal(t, "a key that is gone", err, identity.ErrUnknownKey)
	if _, err := a.bearer(young.sign(t, goodClaims(nil))); err != nil {
		t.Errorf("the new key: %v", err)
	}

	short := young.sign(t, goodClaims(nil))
	_, err = a.bearer(short)
	must(t, err)
	for _, entry := range a.jwt.cache.All() {
		entry.expires = time.Now()
	}
	_, err = a.bearer(short)
	wantRefusal(t, "an expired token in the cache", err, identity.ErrExpired)
}

func TestJWKS(t *testing.T) {
	t.Parallel()
	r, e, d := rsaSigner(t), ecSigner(t, "e"), edSigner(t, "d")
	with := func(k map[string]any, field string, value any) map[string]any {
		k[field] = value
		return k
	}
	for name, test := range map[string]struct {
		set  []byte
		want string // an error
	}{
		"no JSON":           {[]byte("secret nonsense"), "not a JSON Web Key Set"},
		"no keys":           {jwks(t), "no key for"},
		"only others":       {jwks(t, map[string]any{"kty": "oct", "k": "c2VjcmV0"}, map[string]any{"kty": "EC", "crv": "P-384"}), "no key for"},
		"for encryption":    {jwks(t, with(jwkOf(e), "use", "enc")), "no key for"},
		"for signing only":  {jwks(t, with(jwkOf(e), "key_ops", []string{"sign"})), "no key for"},
		"another algorithm": {jwks(t, with(jwkOf(r), "alg", "RS512")), "no key for"},
		"alg HS256":         {jwks(t, with(jwkOf(r), "alg", "HS256")), "no key for"},
		"kid twice":         {jwks(t, e, signer{e.method, "e", ecSigner(t, "").key}), "same kid"},
		"off the curve":     {jwks(t, with(jwkOf(e), "y", b64(make([]byte, 32)))), "not on P-256"},
		"short coordinate":  {jwks(t, with(jwkOf(e), "x", b64(make([]byte, 31)))), "not a coordinate"},
		"short RSA":         {jwks(t, with(jwkOf(r), "n", b64(bytes.Repeat([]byte{0xff}, 128)))), "1024 bits"},
		"long RSA":          {jwks(t, with(jwkOf(r), "n", b64(bytes.Repeat([]byte{0xff}, 2000)))), "16000 bits"},
		"exponent 1":        {jwks(t, with(jwkOf(r), "e", "AQ")), "e is out of range"},
		"even exponent":     {jwks(t, with(jwkOf(r), "e", "BA")), "e is out of range"},
		"huge exponent":     {jwks(t, with(jwkOf(r), "e", b64(bytes.Repeat([]byte{1}, 9)))), "e is out of range"},
		"short Ed25519":     {jwks(t, with(jwkOf(d), "x", "AAAA")), "not an Ed25519 key"},
		"kid of a kind":     {jwks(t, with(jwkOf(d), "kid", 7)), "not a JSON Web Key"},
		"many":              {jwks(t, make([]any, 101)...), "more than 100"},
	} {
		if _, err := parseJWKS(test.set); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	k := jwkOf(e)
	delete(k, "alg")
	delete(k, "use")
	public, err := parseJWKS(jwks(t, k, map[string]any{"kty": "new"}, r, with(jwkOf(d), "key_ops", []string{"verify"})))
	if err != nil || len(public) != 3 {
		t.Errorf("%d keys, %v", len(public), err)
	}
	// What is wrong with a key for another purpose does not matter.
	short := with(jwkOf(r), "n", b64(bytes.Repeat([]byte{0xff}, 128)))
	for field, value := range map[string]any{"use": "enc", "alg": "RSA-OAEP", "key_ops": []string{"encrypt"}} {
		other := with(maps.Clone(short), field, value)
		if public, err := parseJWKS(jwks(t, d, other)); err != nil || len(public) != 1 {
			t.Errorf("beside a short key with another %s: %d keys, %v", field, len(public), err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	set := jwks(t, ecSigner(t, "e"))
	for name, c := range map[string]Config{
		"nothing":     {},
		"no issuer":   {JWT: JWTConfig{JWKS: file(t, set), Audience: "a"}},
		"no audience": {JWT: JWTConfig{JWKS: file(t, set), Issuer: "a"}},
		"no file":     {JWT: JWTConfig{JWKS: "/no/such", Issuer: "a", Audience: "a"}},
		"no secret":   {JWT: JWTConfig{HS256File: file(t, bytes.Repeat([]byte{'a'}, 31)), Issuer: "a", Audience: "a"}},
		"a line break is no part of a secret": {
			JWT: JWTConfig{HS256File: file(t, append(bytes.Repeat([]byte{'a'}, 31), '\n')), Issuer: "a", Audience: "a"},
		},
		"bad callers":         {TokensFile: file(t, nil)},
		"password in the URL": {JWT: JWTConfig{JWKS: "https://u:hunter2@127.0.0.1:1/", Issuer: "a", Audience: "a"}},
		"URL without a host":  {JWT: JWTConfig{JWKS: "https:///keys", Issuer: "a", Audience: "a"}},
		"nobody at the URL":   {JWT: JWTConfig{JWKS: "https://127.0.0.1:1/?key=hunter2", Issuer: "a", Audience: "a"}},
	} {
		a, err := Open(context.Background(), c)
		if err == nil {
			a.Close()
			t.Errorf("%s is accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
