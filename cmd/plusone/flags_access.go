package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/reload"
)

// listenFlags are of commands that listen.
type listenFlags struct {
	TLSCert        string `group:"access" name:"tls-cert" placeholder:"FILE" help:"Certificate of the server in PEM, with the chain behind it: serve gRPC and HTTP by TLS alone. It is loaded again when it changes."`
	TLSKey         string `group:"access" name:"tls-key" placeholder:"FILE" help:"Private key of the certificate, in PEM. Certificate and key are taken together: a pair that does not match leaves the old one in force."`
	MaxConnections int    `group:"limits" default:"10000" help:"Connections to each of the two ports. Further ones are closed at once: a connection costs up to some 100 kB, whether it is used or not."`
	AdminAddr      string `group:"listen" placeholder:"ADDRESS" help:"Where profiles (/debug/pprof/) and the state of connections (gRPC channelz) are served, in plain text and to whoever asks: a loopback address. By default nowhere."`
}

func (f *listenFlags) tls() bool { return f.TLSCert != "" }

func (f *listenFlags) check() error {
	var err error
	if (f.TLSCert == "") != (f.TLSKey == "") {
		err = errors.New("--tls-cert and --tls-key are of use only together")
	}
	return errors.Join(err, between("--max-connections", f.MaxConnections, 1, 1_000_000))
}

// accessFlags say who may call.
type accessFlags struct {
	TLSClientCA  string        `group:"access" name:"tls-client-ca" placeholder:"FILE" help:"Certificates of authorities, in PEM: a client of the gRPC port must have a certificate by one of them (mTLS). Without --tokens-file and JWTs, each such client may do everything."`
	TokensFile   string        `group:"access" placeholder:"FILE" help:"YAML that lists who may call, by the hash of a token (\"plusone token\" draws one) or by a name in the client's certificate. It is loaded again when it changes."`
	JWTJWKS      string        `group:"access" name:"jwt-jwks" placeholder:"FILE-OR-URL" help:"Take JWTs signed by RS256, ES256 or EdDSA with a key of this JSON Web Key Set: a file, loaded again when it changes, or an https URL, fetched every 5 minutes."`
	JWTHS256File string        `group:"access" name:"jwt-hs256-file" env:"PLUSONE_JWT_HS256_FILE" placeholder:"FILE" help:"Take JWTs signed by HS256 with the secret in this file, at least 32 bytes."`
	JWTIssuer    string        `group:"access" name:"jwt-issuer" placeholder:"TEXT" help:"The iss that a JWT must have, so that others with the same keys are nobody."`
	JWTAudience  string        `group:"access" name:"jwt-audience" placeholder:"TEXT" help:"The aud that a JWT must have, so that one for another service is of no use here."`
	JWTLeeway    time.Duration `group:"access" name:"jwt-leeway" default:"30s" help:"By how much the clocks of plusone and the issuer of JWTs may differ."`
	HealthPublic bool          `group:"access" default:"true" help:"Answer gRPC health checks to anyone: load balancers often have no credentials. /healthz is open in any case."`
	Reflection   string        `group:"access" default:"auto" enum:"auto,on,off" help:"Tell what methods there are by gRPC reflection: on, off, or auto, which is on at a loopback address. With authentication, only callers that are known are told."`
}

// jwt reports whether JWTs are taken.
func (f *accessFlags) jwt() bool { return f.JWTJWKS != "" || f.JWTHS256File != "" }

// authentication reports whether callers are told.
func (f *accessFlags) authentication() bool {
	return f.TokensFile != "" || f.TLSClientCA != "" || f.jwt()
}

func (f *accessFlags) check(given []*kong.Flag, tls bool) error {
	var errs []error
	refuse := func(wrong bool, message string) {
		if wrong {
			errs = append(errs, errors.New(message))
		}
	}
	refuse(f.TLSClientCA != "" && !tls, "--tls-client-ca needs --tls-cert and --tls-key")
	refuse(f.jwt() && (f.JWTIssuer == "" || f.JWTAudience == ""), "JWTs need --jwt-issuer and --jwt-audience")
	refuse(strings.HasPrefix(f.JWTJWKS, "http://"), "--jwt-jwks must be a file or an https URL: whoever could change keys on their way could make any JWT")
	for _, flag := range given {
		switch flag.Name {
		case "jwt-issuer", "jwt-audience", "jwt-leeway":
			refuse(!f.jwt(), fmt.Sprintf("--%s has no effect without --jwt-jwks or --jwt-hs256-file", flag.Name))
		case "health-public":
			refuse(!f.authentication(), "--health-public has no effect without authentication: everybody may do everything")
		}
	}
	return errors.Join(append(errs, between("--jwt-leeway", f.JWTLeeway, 0, 5*time.Minute))...)
}

// open opens what tells callers, or nothing if everyone may do everything.
func (f *accessFlags) open(ctx context.Context, files *reload.Metrics, logger *slog.Logger) (*auth.Authenticator, error) {
	if !f.authentication() {
		return nil, nil //nolint:nilnil // nobody is told
	}
	return auth.Open(ctx, auth.Config{
		TokensFile: f.TokensFile,
		JWT: auth.JWTConfig{
			JWKS: f.JWTJWKS, HS256File: f.JWTHS256File, Issuer: f.JWTIssuer, Audience: f.JWTAudience, Leeway: f.JWTLeeway,
		},
		AnyCertificate: f.TokensFile == "" && !f.jwt(),
		Logger:         logger, Metrics: files,
	})
}
