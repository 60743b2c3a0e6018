package security_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// No secret is in the log at debug level, in metrics or in what callers are told, whatever goes wrong.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.add(auth.Caller{Name: "web", Scopes: []string{"read"}, Namespaces: []string{"views"}})
	s.start("--admin-addr=127.0.0.1:0")
	good := sign(t, jwt.SigningMethodES256, s.key, claims("user:7"))
	bad := sign(t, jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), claims("user:7"))
	counters := s.counters(s.tls())
	var told strings.Builder
	for _, token := range []string{token, good, bad, token + "x", "a.b.c", strings.Repeat(bad, 20)} {
		for _, key := range []string{"views/a", "other/a", ""} {
			_, err := counters.Increment(bearer(t, token), &plusonev1.IncrementRequest{Key: key})
			told.WriteString(reasonOf(err))
			if err != nil {
				told.WriteString(err.Error())
			}
		}
	}
	// Secrets in the wrong places of files.
	key, err := os.ReadFile(s.server.Key)
	must(t, err)
	s.write("callers.yaml", []byte(s.callers+"- name: other\n  sha256: "+token+"\n  scopes: [read]\n  namespaces: ['*']\n"))
	s.write("jwks.json", append(s.secret, "{"...))
	s.write("server-key.pem", append(bytes.ReplaceAll(key, []byte("BEGIN"), []byte("BEGAN")), s.secret...))
	eventually(t, "the files are refused", func() bool {
		return strings.Count(string(s.Output()), "cannot be used") == 3
	})
	_, page := s.get(t, "/metrics")

	const password = "hunter2"
	free := []string{"serve", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--data=" + s.path("other.db"), "--jwt-issuer=x", "--jwt-audience=x"}
	for _, args := range [][]string{
		{"--jwt-jwks=https://user:" + password + "@127.0.0.1:1/keys"},
		{"--jwt-jwks=https://127.0.0.1:1/keys?key=" + password},
		{"--jwt-jwks=http://user:" + password + "@127.0.0.1:1/keys"},
		{"--jwt-jwks=https://user:" + password + "@[::1/keys"},
	} {
		output, code := plusonetest.Execute(t, binary, nil, append(free, args...)...)
		if code == 0 {
			t.Errorf("it starts with %q", args)
		}
		told.WriteString(output)
	}

	for line := range strings.Lines(string(s.Output())) {
		if !strings.Contains(line, `"level":"DEBUG"`) && strings.Contains(line, "user:7") {
			t.Errorf("the log names a person: %s", line)
		}
	}
	secrets := map[string]string{
		"the token": token, "its random part": strings.TrimPrefix(token, "plusone_"), "a JWT": good,
		"the signature of a JWT": good[strings.LastIndex(good, ".")+1:], "a forged JWT": bad, "the secret": string(s.secret),
		"the secret in hex": hex.EncodeToString(s.secret), "the secret in base64": base64.StdEncoding.EncodeToString(s.secret),
		"a password": password,
	}
	for i, line := range strings.Split(strings.TrimSpace(string(key)), "\n") {
		if !strings.HasPrefix(line, "-----") {
			secrets[fmt.Sprint("the key's line ", i+1)] = line
		}
	}
	for where, text := range map[string]string{"the log": string(s.Output()), "the metrics": page, "an answer": told.String()} {
		for what, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s", where, what)
			}
		}
		if strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s has a private key", where)
		}
	}
	if len(s.Output()) == 0 || !strings.Contains(page, "plusone_auth_refused_total") {
		t.Error("there is nothing to look at")
	}
}

// A token that plusone draws is taken, and told once.
func TestDrawnToken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	output, code := plusonetest.Execute(t, binary, nil, "token", "web", "--namespaces=views,likes*", "--scopes=write", "--actor=user:7",
		"--expires="+time.Now().Add(time.Hour).Format(time.RFC3339))
	token, entry, found := strings.Cut(output, "\n")
	if code != 0 || !found || strings.Contains(entry, token) {
		t.Fatalf("exit code %d:\n%s", code, output)
	}
	s.callers += entry
	s.start()
	counters := s.counters(s.tls())
	for actor, want := range map[string]string{"user:7": "OK", "user:8": "PermissionDenied ACTOR_DENIED"} {
		_, err := counters.Increment(bearer(t, token), &plusonev1.IncrementRequest{Key: "likes2/a", Actor: actor})
		if got := reasonOf(err); got != want {
			t.Errorf("for %s: %s, want %s", actor, got, want)
		}
	}
}
