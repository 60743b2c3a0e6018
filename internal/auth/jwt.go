package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/maypok86/otter/v2"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
	"github.com/plusone-dev/plusone/internal/reload"
)

const (
	// maxVerified is how many verified JWTs are remembered, at some 700 bytes each.
	maxVerified = 20_000
	// minSecretBytes is the size of the hash, below which RFC 7518 allows no key for HS256.
	minSecretBytes = 32
	maxSecretBytes = 4 << 10
	// serviceScope frees a JWT from its subject: it may act for anyone.
	serviceScope = "service"
)

// JWTConfig says which JWTs are taken. The zero value takes none.
type JWTConfig struct {
	// JWKS is the file, or the https URL, of the public keys for RS256, ES256 and EdDSA. Empty for none.
	JWKS string
	// HS256File holds the shared secret for HS256, at least 32 bytes; a line break at its end is not part of it. Empty
	// for none.
	HS256File string
	// Issuer and Audience must be in each token.
	Issuer, Audience string
	// Leeway is by how much clocks may differ.
	Leeway time.Duration
}

func (c JWTConfig) enabled() bool { return c.JWKS != "" || c.HS256File != "" }

// remote reports whether the public keys come from a URL.
func (c JWTConfig) remote() bool { return strings.HasPrefix(c.JWKS, "https://") }

// keys are all that verify JWTs at one time.
type keys struct {
	public []publicKey
	secret []byte
}

// find returns the key for an algorithm. Each key is for one algorithm alone, so that none can be talked into verifying by
// another: a public key is never a secret of HS256. Without an id there must be one key only.
func (k *keys) find(algorithm, id string) (any, error) {
	if algorithm == jwt.SigningMethodHS256.Name {
		if k.secret == nil {
			return nil, identity.ErrWrongAlgorithm
		}
		return k.secret, nil
	}
	var found any
	for i := range k.public {
		key := &k.public[i]
		if key.algorithm != algorithm || id != "" && key.id != id {
			continue
		}
		if found != nil {
			return nil, identity.ErrUnknownKey
		}
		found = key.key
	}
	if found == nil {
		return nil, identity.ErrUnknownKey
	}
	return found, nil
}

// verified is a JWT whose signature and claims were good with some keys.
type verified struct {
	identity identity.Identity
	keys     *keys
	expires  time.Time
}

// verifier verifies JWTs. A signature costs tens of microseconds, so those that were good are remembered, until they
// expire or the keys change.
type verifier struct {
	parser *jwt.Parser
	leeway time.Duration
	cache  *otter.Cache[digest, *verified]

	// Either file or remote has the public keys, or both are nil.
	file   *reload.File[[]publicKey]
	remote *remoteKeys
	secret *reload.File[[]byte] // nil if there is none

	changing sync.Mutex // held while keys are put together
	keys     atomic.Pointer[keys]
}

func openVerifier(ctx context.Context, c JWTConfig, logger *slog.Logger, metrics *reload.Metrics) (*verifier, error) {
	if c.Issuer == "" || c.Audience == "" {
		return nil, errors.New("JWTs need an issuer and an audience")
	}
	cache, err := otter.New(&otter.Options[digest, *verified]{MaximumSize: maxVerified, Logger: &otter.NoopLogger{}})
	if err != nil {
		return nil, fmt.Errorf("cache of JWTs: %w", err)
	}
	v := &verifier{leeway: c.Leeway, cache: cache}
	if err := v.open(ctx, c, logger, metrics); err != nil {
		v.close()
		return nil, err
	}
	var algorithms []string
	if c.JWKS != "" {
		algorithms = publicAlgorithms()
	}
	if c.HS256File != "" {
		algorithms = append(algorithms, jwt.SigningMethodHS256.Name)
	}
	v.parser = jwt.NewParser(jwt.WithValidMethods(algorithms), jwt.WithIssuer(c.Issuer), jwt.WithAudience(c.Audience),
		jwt.WithExpirationRequired(), jwt.WithLeeway(c.Leeway), jwt.WithStrictDecoding())
	v.putTogether()
	return v, nil
}

// open loads the keys.
func (v *verifier) open(ctx context.Context, c JWTConfig, logger *slog.Logger, metrics *reload.Metrics) (err error) {
	options := reload.Options{Name: "jwks", Path: c.JWKS, MaxBytes: maxJWKSBytes, Logger: logger, Metrics: metrics, OnChange: v.putTogether}
	switch {
	case c.remote():
		v.remote, err = openRemoteKeys(ctx, remoteOptions{URL: c.JWKS, Logger: logger, Metrics: metrics, OnChange: v.putTogether})
	case c.JWKS != "":
		v.file, err = reload.Open(options, parseJWKS)
	}
	if err == nil && c.HS256File != "" {
		options.Name, options.Path, options.MaxBytes = "hs256", c.HS256File, maxSecretBytes
		v.secret, err = reload.Open(options, parseSecret)
	}
	return err
}

func (v *verifier) close() {
	if v.file != nil {
		v.file.Close()
	}
	if v.remote != nil {
		v.remote.close()
	}
	if v.secret != nil {
		v.secret.Close()
	}
}

func parseSecret(data []byte) ([]byte, error) {
	secret := []byte(strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"))
	if len(secret) < minSecretBytes {
		return nil, fmt.Errorf("the secret has %d bytes, and must have at least %d", len(secret), minSecretBytes)
	}
	return secret, nil
}

// putTogether takes the keys that are in force into use. What was verified by earlier ones is verified again.
func (v *verifier) putTogether() {
	v.changing.Lock()
	defer v.changing.Unlock()
	k := &keys{}
	switch {
	case v.file != nil:
		k.public = v.file.Get()
	case v.remote != nil:
		k.public = v.remote.get()
	}
	if v.secret != nil {
		k.secret = v.secret.Get()
	}
	v.keys.Store(k)
}

// verify returns whom a JWT stands for.
func (v *verifier) verify(ctx context.Context, token string, sum digest) (*identity.Identity, error) {
	current := v.keys.Load()
	if known, ok := v.cache.GetIfPresent(sum); ok && known.keys == current {
		if time.Now().After(known.expires) {
			return nil, identity.ErrExpired
		}
		return &known.identity, nil
	}
	fresh, err := v.verifyNow(token, current)
	if errors.Is(err, identity.ErrUnknownKey) && v.remote != nil {
		v.remote.renew(ctx)
		// Whoever fetched them: another call may have, after the look above.
		if renewed := v.keys.Load(); renewed != current {
			fresh, err = v.verifyNow(token, renewed)
		}
	}
	if err != nil {
		return nil, err
	}
	v.cache.Set(sum, fresh)
	return &fresh.identity, nil
}

// claims are what is read of a JWT.
type claims struct {
	jwt.RegisteredClaims
	// Scope are names of scopes with spaces between them. Others than plusone's are none of its business.
	Scope string `json:"scope"`
	// Namespaces are patterns of what the token may touch.
	Namespaces []string `json:"namespaces"`
	// Actor binds the token to another actor than its subject.
	Actor string `json:"actor"`
}

func (v *verifier) verifyNow(token string, k *keys) (*verified, error) {
	var c claims
	_, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		if _, critical := t.Header["crit"]; critical { // extensions that must be understood, and are not
			return nil, identity.ErrWrongAlgorithm
		}
		id, _ := t.Header["kid"].(string)
		return k.find(t.Method.Alg(), id)
	})
	if err != nil {
		return nil, refusalOf(err)
	}
	who, err := c.identity()
	if err != nil {
		return nil, err
	}
	return &verified{identity: who, keys: k, expires: c.ExpiresAt.Add(v.leeway)}, nil
}

// refusalOf maps an error of the parser, whose texts may quote the token.
func refusalOf(err error) identity.RefusalError {
	var refusal identity.RefusalError
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.Is(err, jwt.ErrTokenMalformed):
		return identity.ErrMalformed
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return identity.ErrWrongSignature
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return identity.ErrWrongAlgorithm
	case errors.Is(err, jwt.ErrTokenExpired):
		return identity.ErrExpired
	default:
		return identity.ErrWrongClaims
	}
}

// identity is whom verified claims stand for: the subject, bound to itself as the actor, unless the scope service says
// that it is a service, or the claim actor names another one.
func (c *claims) identity() (identity.Identity, error) {
	if !text(c.Subject, counter.MaxActorBytes) || !namespaces(c.Namespaces) ||
		c.Actor != "" && !text(c.Actor, counter.MaxActorBytes) {
		return identity.Identity{}, identity.ErrWrongClaims
	}
	who := identity.Identity{Name: jwtPrefix + c.Subject, Personal: true, Namespaces: c.Namespaces, Actor: c.Actor}
	if who.Actor == "" {
		who.Actor = c.Subject
	}
	for name := range strings.FieldsSeq(c.Scope) {
		who.Scopes |= scopes[name]
		if name == serviceScope {
			who.Actor, who.Personal = c.Actor, c.Actor == c.Subject
		}
	}
	return who, nil
}
