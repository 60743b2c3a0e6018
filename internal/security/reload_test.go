package security_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// While everything is replaced again and again, nobody is refused who may call throughout, and who may not call any more is
// refused soon.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read", "write"}, Namespaces: []string{"views"}})
	stays := s.callers
	leaver := s.add(auth.Caller{Name: "leaver", Scopes: []string{"write"}, Namespaces: []string{"views"}})
	s.start("--tls-client-ca=" + s.authority.Write(t, s.dir))
	own := s.authority.Issue(t, certtest.Leaf{Name: "web"})
	tokens := []string{token, sign(t, jwt.SigningMethodES256, s.key, claims("user:7")), sign(t, jwt.SigningMethodHS256, s.secret, claims("user:8"))}

	var calls atomic.Int64
	var ended atomic.Bool
	var load sync.WaitGroup
	defer load.Wait()
	defer ended.Store(true)
	greeting := tlsOf(s, own)
	increment := func(conn *grpc.ClientConn, token string) error {
		ctx, cancel := context.WithTimeout(context.Background(), plusonetest.Patience)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		_, err := plusonev1.NewCounterServiceClient(conn).Increment(ctx, &plusonev1.IncrementRequest{Key: "views/a"})
		return err
	}
	anew := func(token string, n int) error {
		if strings.HasPrefix(token, "ey") && token != tokens[2] { // another JWT, which no cache has
			fresh := jwt.NewWithClaims(jwt.SigningMethodES256, with(claims("user:7"), "jti", strconv.Itoa(n)))
			fresh.Header["kid"] = "k"
			var err error
			if token, err = fresh.SignedString(s.key); err != nil {
				return err
			}
		}
		conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(greeting))
		if err == nil {
			err = errors.Join(increment(conn, token), conn.Close())
		}
		return err
	}
	repeat := func(call func(n int) error) {
		load.Go(func() {
			for n := 0; !ended.Load(); n++ {
				if err := call(n); err != nil && !ended.Swap(true) {
					t.Errorf("a call that was valid throughout: %v", err)
				}
				calls.Add(1)
			}
		})
	}
	for _, token := range tokens {
		lasting := s.dial(greeting)
		repeat(func(int) error { return increment(lasting, token) })
		repeat(func(n int) error { return anew(token, n) })
	}

	reloads := func(file string) int {
		n, err := strconv.Atoi(s.metric(t, fmt.Sprintf(`plusone_reloads_total{file=%q,result="ok"}`, file)))
		must(t, err)
		return n
	}
	for round := range 2 { // by renames, then in place
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		set := jwksOf(t, s.key)
		set = append(set[:len(set)-2], []byte(`,`+string(jwksOf(t, other))[len(`{"keys":[`):])...)
		set = []byte(replaceLast(string(set), `"kid":"k"`, fmt.Sprintf(`"kid":"k%d"`, round)))
		callers := stays
		for n := range round {
			entry, err := (auth.Caller{Name: fmt.Sprint("new", n), Scopes: []string{"read"}, Namespaces: []string{"*"}, Certificate: fmt.Sprint("c", n)}).Entry()
			must(t, err)
			callers += entry
		}
		server := s.authority.Issue(t, certtest.Leaf{Name: "127.0.0.1", To: time.Now().Add(time.Duration(round+2) * time.Hour)})
		if round%2 == 0 {
			s.write("callers.yaml", []byte(callers))
			s.write("jwks.json", set)
			s.write("authority.pem", append(s.authority.PEM, certtest.NewAuthority(t).PEM...))
			s.write("server.pem", server.Certificate)
			s.write("server-key.pem", server.Key)
		} else {
			must(t, os.WriteFile(s.path("callers.yaml"), []byte(callers), 0o600))
			must(t, os.WriteFile(s.path("jwks.json"), set, 0o600))
			must(t, os.WriteFile(s.path("authority.pem"), append(s.authority.PEM, certtest.NewAuthority(t).PEM...), 0o600))
			server.Write(t, s.dir, "server")
		}
		eventually(t, "all files are loaded again", func() bool {
			for _, file := range []string{"tokens", "jwks", "tls_certificate", "tls_client_ca"} {
				if reloads(file) <= round {
					return ended.Load()
				}
			}
			return true
		})
	}
	before := calls.Load()
	eventually(t, "calls go on", func() bool { return calls.Load() > before+50 || ended.Load() })
	if _, err := s.counters(s.tls(own)).Increment(bearer(t, leaver), &plusonev1.IncrementRequest{Key: "views/a"}); reasonOf(err) != unauthenticated {
		t.Errorf("a caller who was taken out: %v", err)
	}

	// What is wrong is not taken, and shows.
	s.write("callers.yaml", []byte("callers: []"))
	s.write("jwks.json", []byte("{}"))
	s.write("hs256", []byte("short"))
	s.write("server-key.pem", s.authority.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Key)
	s.write("authority.pem", nil)
	eventually(t, "the metrics show it", func() bool {
		for _, file := range []string{"tokens", "jwks", "hs256", "tls_certificate", "tls_client_ca"} {
			if s.metric(t, fmt.Sprintf(`plusone_reload_failing{file=%q}`, file)) != "1" {
				return ended.Load()
			}
		}
		return true
	})
	before = calls.Load()
	eventually(t, "calls go on", func() bool { return calls.Load() > before+50 || ended.Load() })
}

// replaceLast replaces the last place of a text.
func replaceLast(s, old, other string) string {
	for i := len(s) - len(old); i >= 0; i-- {
		if s[i:i+len(old)] == old {
			return s[:i] + other + s[i+len(old):]
		}
	}
	return s
}
