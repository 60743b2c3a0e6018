package security_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	var err error
	if binary, err = plusonetest.Build(plusonetest.Variant{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	issuer   = "https://issuer.example"
	audience = "plusone"
)

// site has what a deployment needs: an authority, a certificate, tokens, and keys of JWTs.
type site struct {
	t         *testing.T
	dir       string
	authority *certtest.Authority
	server    certtest.Files
	callers   string // the text of the file of callers
	key       *ecdsa.PrivateKey
	secret    []byte   // of HS256
	store     []string // flags that say where counts are kept
	*plusonetest.Instance
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: testproc.TempDir(t), authority: certtest.NewAuthority(t), callers: "callers:\n"}
	s.server = s.authority.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, s.dir, "server")
	var err error
	s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	s.secret = []byte(rand.Text() + rand.Text())
	s.store = []string{"--data=" + s.path("plusone.db")}
	return s
}

// add adds a caller who has a token, which it returns.
func (s *site) add(c auth.Caller) (token string) {
	s.t.Helper()
	if c.Certificate == "" {
		token = auth.NewToken(&c)
	}
	entry, err := c.Entry()
	must(s.t, err)
	s.callers += entry
	return token
}

// path is that of a file of the site.
func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// write replaces a file of the site, in one step.
func (s *site) write(name string, content []byte) {
	s.t.Helper()
	must(s.t, os.WriteFile(s.path(name+".new"), content, 0o600))
	must(s.t, os.Rename(s.path(name+".new"), s.path(name)))
}

// start starts a server with TLS, tokens and JWTs.
func (s *site) start(args ...string) {
	s.t.Helper()
	s.write("callers.yaml", []byte(s.callers))
	s.write("jwks.json", jwksOf(s.t, s.key))
	s.write("hs256", s.secret)
	s.Instance = plusonetest.Start(s.t, binary, slices.Concat(s.store, []string{
		"--tls-cert=" + s.server.Certificate, "--tls-key=" + s.server.Key,
		"--tokens-file=" + s.path("callers.yaml"), "--jwt-jwks=" + s.path("jwks.json"), "--jwt-hs256-file=" + s.path("hs256"),
		"--jwt-issuer=" + issuer, "--jwt-audience=" + audience, "--log-level=debug",
	}, args)...)
}

// modes are where a deployment may keep counts, for newSite(t).store.
var modes = map[string]func(t *testing.T, s *site){
	"embedded": func(*testing.T, *site) {},
	"direct":   func(t *testing.T, s *site) { s.store = []string{"--postgres-url=" + pgtest.NewDatabase(t)} },
	"sharded": func(t *testing.T, s *site) {
		s.store = []string{
			"--postgres-url=" + pgtest.NewDatabase(t), "--redis-url=" + redistest.Start(t, redistest.AppendFsyncAlways()).URL(),
			"--shards=4", "--window=200ms", "--flush-interval=50ms",
		}
	},
}

// tls is how a client of the site greets.
func (s *site) tls(pairs ...certtest.Pair) *tls.Config {
	c := &tls.Config{RootCAs: s.authority.Pool()}
	for _, p := range pairs {
		c.Certificates = append(c.Certificates, p.TLS(s.t))
	}
	return c
}

// dial makes a connection that is ready, or about to be.
func (s *site) dial(c credentials.TransportCredentials) *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(c))
	must(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *site) counters(c *tls.Config) plusonev1.CounterServiceClient {
	s.t.Helper()
	return plusonev1.NewCounterServiceClient(s.dial(credentials.NewTLS(c)))
}

// bearer is the context of a call with a token, or without one if that is empty.
func bearer(t *testing.T, token string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), plusonetest.Patience)
	t.Cleanup(cancel)
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// reasonOf is the code and the reason of an error, such as "PermissionDenied MISSING_SCOPE".
func reasonOf(err error) string {
	if err == nil {
		return "OK"
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return st.Code().String() + " " + info.Reason
		}
	}
	return st.Code().String()
}

// jwksOf is a set of a key.
func jwksOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	must(t, err)
	b64 := base64.RawURLEncoding.EncodeToString
	text, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "use": "sig", "kid": "k", "x": b64(point[1:33]), "y": b64(point[33:]),
	}}})
	must(t, err)
	return text
}

// claims are those of a JWT that may count views, for a subject.
func claims(subject string) jwt.MapClaims {
	return jwt.MapClaims{
		"iss": issuer, "aud": audience, "sub": subject, "exp": time.Now().Add(time.Hour).Unix(),
		"scope": "read write report", "namespaces": []string{"views"},
	}
}

func sign(t *testing.T, method jwt.SigningMethod, key any, c jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	token.Header["kid"] = "k"
	text, err := token.SignedString(key)
	must(t, err)
	return text
}

// with returns claims with one of them changed, or left out if value is nil.
func with(c jwt.MapClaims, name string, value any) jwt.MapClaims {
	if c[name] = value; value == nil {
		delete(c, name)
	}
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition on the server.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(plusonetest.Patience, plusonetest.PollInterval, done) {
		t.Fatalf("never: %s", what)
	}
}

// metricOf finds a value in a page of metrics, by its name and labels.
func metricOf(page, name string) string {
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func tlsOf(s *site, pairs ...certtest.Pair) credentials.TransportCredentials {
	return credentials.NewTLS(s.tls(pairs...))
}
