package auth

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/identity"
)

func TestCallers(t *testing.T) {
	t.Parallel()
	web := Caller{Name: "web", Scopes: []string{"read", "write"}, Namespaces: []string{"views", "likes*"}}
	old := Caller{Name: "old", Scopes: []string{"read"}, Namespaces: []string{"*"}, Expires: time.Now().Add(-time.Second)}
	one := Caller{Name: "one", Scopes: []string{"report"}, Namespaces: []string{"*"}, Actor: "user:7", Expires: time.Now().Add(time.Hour)}
	mesh := Caller{Name: "mesh", Scopes: []string{"admin"}, Namespaces: []string{"*"}, Certificate: "spiffe://x/mesh"}
	dns := Caller{Name: "dns", Scopes: []string{"admin"}, Namespaces: []string{"*"}, Certificate: "dns.example"}
	webToken, oldToken, oneToken := NewToken(&web), NewToken(&old), NewToken(&one)
	content := "callers:\n"
	for _, c := range []Caller{web, old, one, mesh, dns} {
		entry, err := c.Entry()
		must(t, err)
		content += entry
	}
	path := file(t, []byte(content))
	a, err := Open(context.Background(), Config{TokensFile: path})
	must(t, err)
	t.Cleanup(a.Close)

	who, err := a.bearer(webToken)
	must(t, err)
	if who.Name != "web" || who.Scopes != identity.Read|identity.Write || !who.Touches("likes2") || who.Touches("views2") || who.Actor != "" {
		t.Errorf("web is %+v", who)
	}
	who, err = a.bearer(oneToken)
	must(t, err)
	if who.Actor != "user:7" || who.Scopes != identity.Report {
		t.Errorf("one is %+v", who)
	}
	for name, test := range map[string]struct {
		token string
		want  identity.RefusalError
	}{
		"expired":        {oldToken, identity.ErrExpired},
		"unknown":        {NewToken(&Caller{}), identity.ErrUnknownToken},
		"part of one":    {webToken[:len(webToken)-1], identity.ErrUnknownToken},
		"the hash":       {web.SHA256, identity.ErrUnknownToken},
		"a space at end": {webToken + " ", identity.ErrUnknownToken},
	} {
		_, err := a.bearer(test.token)
		wantRefusal(t, name, err, test.want)
	}

	_, err = a.Authenticate(context.Background(), nil, nil)
	wantRefusal(t, "nothing", err, identity.ErrNoCredentials)
	certificate := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	uris := []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/mesh"}}
	for _, test := range []struct {
		want string // nobody if empty
		uris []*url.URL
		dns  []string
		cn   string
	}{
		{"mesh", uris, []string{"other", "dns.example"}, "other"},
		{"dns", nil, []string{"other", "dns.example"}, "spiffe://x/mesh"},
		{"mesh", nil, nil, "spiffe://x/mesh"},
		{"", nil, []string{"other"}, "spiffe://x/mesh"},
		{"", []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/other"}}, nil, "spiffe://x/mesh"},
	} {
		certificate.URIs, certificate.DNSNames, certificate.Subject.CommonName = test.uris, test.dns, test.cn
		who, err := a.Authenticate(context.Background(), nil, certificate)
		switch {
		case test.want == "":
			wantRefusal(t, "a common name beside other names", err, identity.ErrUnknownCertificate)
		case err != nil || who.Name != test.want:
			t.Errorf("the certificate is that of %+v, %v, want %s", who, err, test.want)
		}
	}
	_, err = a.Authenticate(context.Background(), []string{"Bearer " + oldToken}, certificate)
	wantRefusal(t, "a bad token with a good certificate", err, identity.ErrExpired)
	certificate.NotAfter = time.Now().Add(-time.Second)
	_, err = a.Authenticate(context.Background(), nil, certificate)
	wantRefusal(t, "an expired certificate", err, identity.ErrExpired)
	_, err = a.Authenticate(context.Background(), nil, &x509.Certificate{NotAfter: time.Now().Add(time.Hour)})
	wantRefusal(t, "another certificate", err, identity.ErrUnknownCertificate)

	entry, err := one.Entry()
	must(t, err)
	must(t, os.WriteFile(path, []byte("callers:\n"+entry), 0o600))
	must(t, a.callers.Reload())
	_, err = a.bearer(webToken)
	wantRefusal(t, "a caller that was taken out", err, identity.ErrUnknownToken)
	if _, err = a.bearer(oneToken); err != nil {
		t.Errorf("a caller that stays: %v", err)
	}
}

func TestAnyCertificate(t *testing.T) {
	t.Parallel()
	a, err := Open(context.Background(), Config{AnyCertificate: true})
	must(t, err)
	defer a.Close()
	who, err := a.Authenticate(context.Background(), nil, &x509.Certificate{
		NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "web"},
	})
	must(t, err)
	if who.Name != "certificate:web" || !who.May(allScopes) || !who.Touches("") {
		t.Errorf("it is %+v", who)
	}
	_, err = a.bearer("plusone_x")
	wantRefusal(t, "a token", err, identity.ErrUnknownToken)
}

func TestCallersRefused(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("ab", 32)
	entry := func(lines string) string { return "callers:\n- " + strings.ReplaceAll(lines, "\n", "\n  ") }
	good := "name: web\nsha256: " + sum + "\nscopes: [read]\nnamespaces: ['*']"
	if _, err := parseCallers([]byte(entry(good))); err != nil {
		t.Fatal(err)
	}
	swap := func(old, other string) string {
		if !strings.Contains(good, old) {
			t.Errorf("there is no %q", old)
		}
		return entry(strings.Replace(good, old, other, 1))
	}
	const secret = "hunter2secret"
	for name, test := range map[string]struct{ file, want string }{
		"empty":                  {"", "lists no callers"},
		"empty list":             {"callers: []", "lists no callers"},
		"no YAML":                {"callers: [" + secret, "yaml"},
		"another list":           {"tokens: []", "line 1: unknown field"},
		"unknown field":          {entry(good + "\ntoken: " + secret), "line 6: unknown field"},
		"a token for a field":    {entry(good + "\n" + secret + ": x"), "line 6: unknown field"},
		"a sentence for a field": {entry(good + "\n\"" + secret + " not found in type x\\n" + secret + "\": x"), "line 6: unknown field"},
		"a token for an alias":   {entry(good + "\nactor: *" + secret), "unknown anchor"},
		"a token for a tag":      {swap("[read]", "!"+secret+" read"), "cannot unmarshal a value into"},
		"a token in backticks":   {swap("[read]", "a`hunter2`"), "cannot unmarshal a value into"},
		"a token for a number":   {entry(good + "\nactor: !!int " + secret), "cannot decode a value as a"},
		"field twice":            {entry(good + "\nname: other"), "already"},
		"wrong kind":             {entry(good + "\nexpires: " + secret), "cannot parse a value"},
		"two documents":          {entry(good) + "\n---\n" + entry(good), "one YAML document"},
		"no name":                {swap("name: web\n", ""), "caller 1: name must be"},
		"name with a space":      {swap("name: web", "name: a b"), "name must be"},
		"name of a JWT":          {swap("name: web", "name: jwt:x"), "must not begin"},
		"name of a certificate":  {swap("name: web", "name: certificate:x"), "must not begin"},
		"name twice":             {entry(good) + "\n" + strings.TrimPrefix(entry(good), "callers:\n"), "there twice"},
		"token twice":            {entry(good) + "\n" + strings.TrimPrefix(swap("name: web", "name: two"), "callers:\n"), "same sha256"},
		"no scopes":              {swap("scopes: [read]\n", ""), "no scopes"},
		"unknown scope":          {swap("[read]", "[read, "+secret+"]"), "scopes must be of"},
		"no namespaces":          {swap("\nnamespaces: ['*']", ""), "namespaces must be"},
		"empty namespace":        {swap("['*']", "['']"), "namespaces must be"},
		"star within":            {swap("['*']", "['a*b']"), "namespaces must be"},
		"a key":                  {swap("['*']", "['a/b']"), "namespaces must be"},
		"actor with a space":     {entry(good + "\nactor: a b"), "actor must be"},
		"neither":                {swap("sha256: "+sum+"\n", ""), "either a sha256 or a certificate"},
		"both":                   {entry(good + "\ncertificate: x"), "either a sha256 or a certificate"},
		"a token for its sha256": {swap(sum, secret), "64 hexadecimal digits"},
		"short sha256":           {swap(sum, sum[:62]), "64 hexadecimal digits"},
		"too many":               {"callers:\n" + strings.Repeat("- {}\n", maxCallers+1), "more than 10000"},
		"expanding aliases":      {bomb(), "yaml"},
		"certificate of two": {
			"callers:\n- {name: a, certificate: x, scopes: [read], namespaces: ['*']}\n" +
				"- {name: b, certificate: x, scopes: [read], namespaces: ['*']}", "same certificate",
		},
	} {
		_, err := parseCallers([]byte(test.file))
		switch {
		case err == nil || !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		case strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%s: the error has the secret: %v", name, err)
		}
	}
}

// bomb is YAML of aliases that would expand to billions of nodes.
func bomb() string {
	text := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), ", "))
	}
	return text
}
