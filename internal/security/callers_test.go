package security_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/certtest"
)

const unauthenticated = "Unauthenticated UNAUTHENTICATED"

// Nobody gets in by a token that is not his, and nobody further than his token lets him.
func TestTokens(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	web := s.add(auth.Caller{Name: "web", Scopes: []string{"read", "write"}, Namespaces: []string{"views", "likes*"}})
	reader := s.add(auth.Caller{Name: "reader", Scopes: []string{"read"}, Namespaces: []string{"*"}})
	ann := s.add(auth.Caller{Name: "ann", Scopes: []string{"read", "write", "report"}, Namespaces: []string{"*"}, Actor: "user:ann"})
	gone := s.add(auth.Caller{Name: "gone", Scopes: []string{"read", "write"}, Namespaces: []string{"*"}, Expires: time.Now().Add(-time.Hour)})
	s.start()
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	must(t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	es256 := func(c jwt.MapClaims) string { return sign(t, jwt.SigningMethodES256, s.key, c) }
	good := es256(claims("user:7"))
	parts := strings.Split(good, ".")

	counters := s.counters(s.tls())
	reports := plusonev1.NewReportServiceClient(s.dial(credentials.NewTLS(s.tls())))
	inc := func(key, actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := counters.Increment(ctx, &plusonev1.IncrementRequest{Key: key, Actor: actor})
			return err
		}
	}
	get := func(ctx context.Context) error {
		_, err := counters.Get(ctx, &plusonev1.GetRequest{Key: "views/a"})
		return err
	}
	likes := func(actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := counters.BatchGetLikes(ctx, &plusonev1.BatchGetLikesRequest{Actor: actor, Keys: []string{"views/a"}})
			return err
		}
	}
	liked := func(actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := reports.ListLiked(ctx, &plusonev1.ListLikedRequest{Actor: actor})
			return err
		}
	}
	const scope, namespace, actor = "PermissionDenied MISSING_SCOPE", "PermissionDenied NAMESPACE_DENIED", "PermissionDenied ACTOR_DENIED"
	for name, test := range map[string]struct {
		token string
		call  func(context.Context) error
		want  string
	}{
		"a token":               {web, inc("views/a", ""), "OK"},
		"a token for anyone":    {web, inc("likes2/a", "user:any"), "OK"},
		"no token":              {"", inc("views/a", ""), unauthenticated},
		"no token for a read":   {"", get, unauthenticated},
		"forged":                {auth.NewToken(&auth.Caller{}), inc("views/a", ""), unauthenticated},
		"cut":                   {web[:len(web)-1], inc("views/a", ""), unauthenticated},
		"expired":               {gone, inc("views/a", ""), unauthenticated},
		"large":                 {strings.Repeat("x", 20_000), inc("views/a", ""), unauthenticated},
		"scope":                 {reader, inc("views/a", ""), scope},
		"scope of reports":      {web, liked("user:any"), scope},
		"namespace":             {web, inc("other/a", ""), namespace},
		"namespace by a prefix": {web, inc("viewsx/a", ""), namespace},
		"no namespace":          {web, inc("views", ""), namespace},
		"own actor":             {ann, inc("any/a", "user:ann"), "OK"},
		"another actor":         {ann, inc("any/a", "user:ben"), actor},
		"another's likes":       {ann, likes("user:ben"), actor},
		"another's list":        {ann, liked("user:ben"), actor},
		"own list":              {ann, liked("user:ann"), "OK"},

		"a JWT":                    {good, inc("views/a", "user:7"), "OK"},
		"a JWT for another actor":  {good, inc("views/a", "user:8"), actor},
		"a JWT for a list":         {good, liked("user:8"), actor},
		"a JWT for a namespace":    {good, inc("likes/a", "user:7"), namespace},
		"a service":                {es256(with(claims("svc"), "scope", "service write")), inc("views/a", "user:8"), "OK"},
		"a service without a read": {es256(with(claims("svc"), "scope", "service write")), get, scope},
		"HS256":                    {sign(t, jwt.SigningMethodHS256, s.secret, claims("user:7")), inc("views/a", "user:7"), "OK"},
		"expired JWT":              {es256(with(claims("user:7"), "exp", time.Now().Add(-time.Minute).Unix())), get, unauthenticated},
		"JWT without an end":       {es256(with(claims("user:7"), "exp", nil)), get, unauthenticated},
		"JWT of the future":        {es256(with(claims("user:7"), "nbf", time.Now().Add(time.Hour).Unix())), get, unauthenticated},
		"audience":                 {es256(with(claims("user:7"), "aud", "other")), get, unauthenticated},
		"issuer":                   {es256(with(claims("user:7"), "iss", "https://other.example")), get, unauthenticated},
		"alg none":                 {sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims("user:7")), get, unauthenticated},
		"HS256 by the public key":  {sign(t, jwt.SigningMethodHS256, public, claims("user:7")), get, unauthenticated},
		"HS256 by the set":         {sign(t, jwt.SigningMethodHS256, jwksOf(t, s.key), claims("user:7")), get, unauthenticated},
		"another key":              {sign(t, jwt.SigningMethodES256, newSite(t).key, claims("user:7")), get, unauthenticated},
		"no signature":             {parts[0] + "." + parts[1] + ".", get, unauthenticated},
		"another's claims":         {parts[0] + "." + strings.Split(es256(claims("root")), ".")[1] + "." + parts[2], get, unauthenticated},
		"posing as a caller":       {es256(claims("web")), inc("likes/a", "web"), namespace},
	} {
		if got := reasonOf(test.call(bearer(t, test.token))); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if n := s.metric(t, `plusone_auth_refused_total{reason="unknown_token"}`); n == "0" || n == "" {
		t.Errorf("%q unknown tokens were refused", n)
	}
}

// What needs no credentials is health alone, and that only as long as it is not set otherwise.
func TestOtherServices(t *testing.T) {
	t.Parallel()
	for _, public := range []bool{true, false} {
		t.Run(fmt.Sprint("health-public=", public), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			token := s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"views"}})
			s.start(fmt.Sprint("--health-public=", public))
			conn := s.dial(credentials.NewTLS(s.tls()))
			check := func(token string) error {
				_, err := healthpb.NewHealthClient(conn).Check(bearer(t, token), &healthpb.HealthCheckRequest{})
				return err
			}
			want := unauthenticated
			if public {
				want = "OK"
			}
			if got := reasonOf(check("")); got != want {
				t.Errorf("health: %s, want %s", got, want)
			}
			if got := reasonOf(check(token)); got != "OK" {
				t.Errorf("health with a token: %s", got)
			}
			for token, want := range map[string]string{"": unauthenticated, token: "OK"} {
				stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(bearer(t, token))
				must(t, err)
				err = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
				if !errors.Is(err, io.EOF) { // which says that it was refused before, and Recv says why
					must(t, err)
				}
				if _, err = stream.Recv(); reasonOf(err) != want {
					t.Errorf("reflection: %s, want %s", reasonOf(err), want)
				}
			}
			if code, _ := s.get(t, "/healthz"); code != 200 {
				t.Errorf("/healthz answers %d", code)
			}
		})
	}
}

// Certificates tell callers, and who has none of the right authority gets no connection.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), certtest.NewAuthority(t)
	s.add(auth.Caller{Name: "mesh", Scopes: []string{"read"}, Namespaces: []string{"*"}, Certificate: "mesh.example"})
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read", "write"}, Namespaces: []string{"*"}})
	s.start("--tls-client-ca=" + s.authority.Write(t, s.dir))
	get := func(token string, pairs ...certtest.Pair) string {
		ctx, cancel := context.WithTimeout(bearer(t, token), 10*time.Second)
		defer cancel()
		_, err := s.counters(s.tls(pairs...)).Get(ctx, &plusonev1.GetRequest{Key: "views/a"})
		return reasonOf(err)
	}
	issue := func(leaf certtest.Leaf) certtest.Pair { return s.authority.Issue(t, leaf) }
	for name, test := range map[string]struct {
		token string
		pair  []certtest.Pair
		want  string
	}{
		"known":                   {"", []certtest.Pair{issue(certtest.Leaf{Name: "mesh.example"})}, "OK"},
		"unknown":                 {"", []certtest.Pair{issue(certtest.Leaf{Name: "other.example"})}, unauthenticated},
		"unknown with a token":    {token, []certtest.Pair{issue(certtest.Leaf{Name: "other.example"})}, "OK"},
		"known with a bad token":  {token + "x", []certtest.Pair{issue(certtest.Leaf{Name: "mesh.example"})}, unauthenticated},
		"none, with a good token": {token, nil, "Unavailable"},
		"of another authority":    {token, []certtest.Pair{other.Issue(t, certtest.Leaf{Name: "mesh.example"})}, "Unavailable"},
		"expired": {
			token,
			[]certtest.Pair{issue(certtest.Leaf{Name: "mesh.example", From: time.Now().Add(-2 * time.Hour), To: time.Now().Add(-time.Hour)})},
			"Unavailable",
		},
		"too early": {
			token,
			[]certtest.Pair{issue(certtest.Leaf{Name: "mesh.example", From: time.Now().Add(time.Hour), To: time.Now().Add(2 * time.Hour)})},
			"Unavailable",
		},
	} {
		if got := get(test.token, test.pair...); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if code, _ := s.get(t, "/healthz"); code != 200 {
		t.Errorf("/healthz without a certificate answers %d", code)
	}
}
