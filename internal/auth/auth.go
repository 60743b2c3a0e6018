// Package auth tells who calls: by a token that a file lists, by a JWT, or by the certificate of the connection.
package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/plusone-dev/plusone/internal/identity"
	"github.com/plusone-dev/plusone/internal/reload"
)

// maxTokenBytes is ample for a JWT, and keeps what a wrong one can cost small.
const maxTokenBytes = 8 << 10

// usualTokenBytes is what most tokens fit into. Up to there they are hashed on the stack.
const usualTokenBytes = 1 << 10

// Config says by what callers are told. At least one of TokensFile, JWT and AnyCertificate is needed.
type Config struct {
	// TokensFile lists callers; it is followed. Empty for none.
	TokensFile string
	// JWT says which JWTs are taken. The zero value is none.
	JWT JWTConfig
	// AnyCertificate lets whoever has a verified certificate do everything. It is not for use with a TokensFile.
	AnyCertificate bool
	// Logger takes what becomes of changed files and keys.
	Logger *slog.Logger
	// Metrics, if not nil, count those changes.
	Metrics *reload.Metrics
}

// digest is the SHA-256 of a token. Tokens are looked up by it, so that the time of a look-up tells nothing of them.
type digest = [sha256.Size]byte

// Authenticator tells who calls. Its methods may be called concurrently.
type Authenticator struct {
	callers        *reload.File[*callers] // nil if there is no file
	jwt            *verifier              // nil if none are taken
	anyCertificate bool
}

// Open loads the files and keys, and follows them until Close. It fails if one of them cannot be used.
func Open(ctx context.Context, c Config) (*Authenticator, error) {
	if c.TokensFile == "" && !c.JWT.enabled() && !c.AnyCertificate {
		return nil, errors.New("there is nothing by which callers could be told")
	}
	a := &Authenticator{anyCertificate: c.AnyCertificate}
	var err error
	if c.TokensFile != "" {
		a.callers, err = reload.Open(reload.Options{
			Name: "tokens", Path: c.TokensFile, MaxBytes: maxCallersBytes, Logger: c.Logger, Metrics: c.Metrics,
		}, parseCallers)
	}
	if err == nil && c.JWT.enabled() {
		a.jwt, err = openVerifier(ctx, c.JWT, c.Logger, c.Metrics)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close ends the following of files and keys.
func (a *Authenticator) Close() {
	if a.callers != nil {
		a.callers.Close()
	}
	if a.jwt != nil {
		a.jwt.close()
	}
}

// Authenticate returns who makes a call, by the values of its authorization header, else by the certificate of its
// connection, which has been verified and may be nil. An error is an identity.RefusalError. It may wait for new keys, as long
// as ctx lasts and not beyond a few seconds.
func (a *Authenticator) Authenticate(ctx context.Context, authorization []string, certificate *x509.Certificate,
) (*identity.Identity, error) {
	switch {
	case len(authorization) == 1:
		return a.byToken(ctx, authorization[0])
	case len(authorization) > 1:
		return nil, identity.ErrMalformed
	case certificate != nil:
		return a.byCertificate(certificate, time.Now())
	default:
		return nil, identity.ErrNoCredentials
	}
}

func (a *Authenticator) byToken(ctx context.Context, authorization string) (*identity.Identity, error) {
	const scheme = "Bearer "
	if len(authorization) <= len(scheme) || len(authorization) > len(scheme)+maxTokenBytes ||
		!strings.EqualFold(authorization[:len(scheme)], scheme) {
		return nil, identity.ErrMalformed
	}
	token := authorization[len(scheme):]
	sum := sha256.Sum256(append(make([]byte, 0, usualTokenBytes), token...))
	if a.callers != nil {
		if c, ok := a.callers.Get().byToken[sum]; ok {
			return c.now(time.Now())
		}
	}
	if a.jwt != nil && strings.Count(token, ".") == 2 {
		return a.jwt.verify(ctx, token, sum)
	}
	return nil, identity.ErrUnknownToken
}

const (
	// maxCertificateNames bounds the names of a certificate that are looked up in each call.
	maxCertificateNames = 100
	// maxCertificateName is how long one may be that names an identity.
	maxCertificateName = 256
)

// byCertificate looks for the names of a certificate.
func (a *Authenticator) byCertificate(certificate *x509.Certificate, now time.Time) (*identity.Identity, error) {
	if now.After(certificate.NotAfter) { // the connection was made before
		return nil, identity.ErrExpired
	}
	names := certificateNames(certificate)
	if a.anyCertificate {
		who := &identity.Identity{Name: certificatePrefix, Scopes: allScopes, Namespaces: []string{"*"}}
		if i := slices.IndexFunc(names, func(name string) bool { return text(name, maxCertificateName) }); i >= 0 {
			who.Name += names[i]
		}
		return who, nil
	}
	if a.callers != nil {
		known := a.callers.Get().byCertificate
		for _, name := range names {
			if c, ok := known[name]; ok {
				return c.now(now)
			}
		}
	}
	return nil, identity.ErrUnknownCertificate
}

// certificateNames are the URIs and then the DNS names of a certificate, or its common name if it has neither: an authority
// that vouches for those may leave the common name to whoever asks.
func certificateNames(c *x509.Certificate) []string {
	if len(c.URIs)+len(c.DNSNames) == 0 {
		return []string{c.Subject.CommonName}
	}
	names := make([]string, 0, len(c.URIs)+len(c.DNSNames))
	for _, uri := range c.URIs {
		names = append(names, uri.String())
	}
	names = append(names, c.DNSNames...)
	return names[:min(len(names), maxCertificateNames)]
}
