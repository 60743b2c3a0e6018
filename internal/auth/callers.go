package auth

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// Limits of the file of callers.
const (
	maxCallersBytes = 8 << 20
	maxCallers      = 10_000
	maxNameBytes    = 64
	// maxNamespaces bounds what a call may cost that touches none of them.
	maxNamespaces = 100
)

// Names of identities that do not come from the file begin so, and names in the file must not.
const (
	jwtPrefix         = "jwt:"
	certificatePrefix = "certificate:"
)

const allScopes = identity.Read | identity.Write | identity.Report | identity.Admin

var scopes = map[string]identity.Scope{
	"read": identity.Read, "write": identity.Write, "report": identity.Report, "admin": identity.Admin,
}

// Scopes are the names of all scopes.
func Scopes() []string { return []string{"read", "write", "report", "admin"} }

// Caller is an entry of the file of callers.
type Caller struct {
	// Name tells callers apart.
	Name string `yaml:"name"`
	// SHA256 is that of the token, in hex. There is either this or a certificate.
	SHA256 string `yaml:"sha256,omitempty"`
	// Certificate is a name in the caller's certificate: a URI, a DNS name, or the common name if it has neither.
	Certificate string `yaml:"certificate,omitempty"`
	// Scopes are what it may do.
	Scopes []string `yaml:"scopes,flow"`
	// Namespaces are patterns of what it may touch.
	Namespaces []string `yaml:"namespaces,flow"`
	// Actor, if not empty, is the only one that it may act for.
	Actor string `yaml:"actor,omitempty"`
	// Expires, if not zero, is when it is refused from.
	Expires time.Time `yaml:"expires,omitempty"`
}

// callers are those of the file.
type callers struct {
	byToken       map[digest]*caller
	byCertificate map[string]*caller
}

// caller is one of them, as it is needed in a call.
type caller struct {
	identity identity.Identity
	expires  time.Time
}

// now returns the identity, if its time is not over.
func (c *caller) now(now time.Time) (*identity.Identity, error) {
	if !c.expires.IsZero() && !now.Before(c.expires) {
		return nil, identity.ErrExpired
	}
	return &c.identity, nil
}

// parseCallers reads the file. Its errors quote nothing but names.
func parseCallers(data []byte) (*callers, error) {
	var file struct {
		Callers []Caller `yaml:"callers"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, withoutValues(err)
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it must be one YAML document")
	}
	switch n := len(file.Callers); {
	case n == 0: // perhaps it is just being written
		return nil, errors.New("it lists no callers")
	case n > maxCallers:
		return nil, fmt.Errorf("it lists %d callers, more than %d", n, maxCallers)
	}
	all := &callers{byToken: map[digest]*caller{}, byCertificate: map[string]*caller{}}
	names := map[string]bool{}
	for i, entry := range file.Callers {
		if err := checkCallerName(entry.Name); err != nil {
			return nil, fmt.Errorf("caller %d: %w", i+1, err)
		}
		if names[entry.Name] {
			return nil, fmt.Errorf("caller %q is there twice", entry.Name)
		}
		names[entry.Name] = true
		if err := all.add(entry); err != nil {
			return nil, fmt.Errorf("caller %q: %w", entry.Name, err)
		}
	}
	return all, nil
}

// withoutValues takes what the file says out of an error of YAML: somebody may have put a token in the wrong place, as a
// value, a key, a tag or the name of an anchor. The line stays.
func withoutValues(err error) error {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return errors.New(withoutQuotes(err.Error()))
	}
	texts := make([]string, len(wrong.Errors))
	for i, text := range wrong.Errors {
		texts[i] = withoutQuotes(text)
	}
	return errors.New("yaml: " + strings.Join(texts, "; "))
}

// quotes are what an error may quote, up to the last of the words that follow, as the file may have these too.
var quotes = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?s)field .* not found in type .*`), "unknown field"},
	{regexp.MustCompile(`(?s)cannot (unmarshal|decode) .* (into|as a) `), "cannot $1 a value $2 "},
	{regexp.MustCompile(`(?s)anchor '.*'`), "anchor"},
	{regexp.MustCompile("(?s)`.*`" + `|"(?:[^"\\]|\\.)*"`), "a value"},
}

func withoutQuotes(text string) string {
	for _, q := range quotes {
		text = q.pattern.ReplaceAllString(text, q.instead)
	}
	return text
}

func checkCallerName(name string) error {
	switch {
	case !text(name, maxNameBytes):
		return fmt.Errorf("name must be 1 to %d bytes of printable UTF-8 without spaces", maxNameBytes)
	case strings.HasPrefix(name, jwtPrefix), strings.HasPrefix(name, certificatePrefix):
		return fmt.Errorf("name must not begin with %s or %s, as those of other identities do", jwtPrefix, certificatePrefix)
	}
	return nil
}

// add adds an entry.
func (all *callers) add(entry Caller) error {
	c := &caller{
		identity: identity.Identity{Name: entry.Name, Namespaces: entry.Namespaces, Actor: entry.Actor},
		expires:  entry.Expires,
	}
	for _, name := range entry.Scopes {
		scope, ok := scopes[name]
		if !ok {
			return errors.New("scopes must be of " + strings.Join(Scopes(), ", "))
		}
		c.identity.Scopes |= scope
	}
	switch {
	case c.identity.Scopes == 0:
		return errors.New("it has no scopes")
	case len(entry.Namespaces) == 0 || !namespaces(entry.Namespaces):
		return fmt.Errorf("namespaces must be 1 to %d patterns: a name, a name's beginning and a *, or *", maxNamespaces)
	case entry.Actor != "" && !text(entry.Actor, counter.MaxActorBytes):
		return fmt.Errorf("actor must be at most %d bytes of printable UTF-8 without spaces", counter.MaxActorBytes)
	case (entry.SHA256 == "") == (entry.Certificate == ""):
		return errors.New("it must have either a sha256 or a certificate")
	case entry.Certificate != "":
		if all.byCertificate[entry.Certificate] != nil {
			return errors.New("another one has the same certificate")
		}
		all.byCertificate[entry.Certificate] = c
		return nil
	}
	sum, err := hex.DecodeString(entry.SHA256)
	if err != nil || len(sum) != len(digest{}) {
		return errors.New("sha256 must be 64 hexadecimal digits, as plusone token prints them")
	}
	if all.byToken[digest(sum)] != nil {
		return errors.New("another one has the same sha256")
	}
	all.byToken[digest(sum)] = c
	return nil
}

// namespaces reports whether all are patterns of namespaces.
func namespaces(patterns []string) bool {
	return len(patterns) <= maxNamespaces && !slices.ContainsFunc(patterns, func(p string) bool {
		return !text(p, counter.MaxKeyBytes) || strings.Contains(p, "/") || strings.Contains(p[:len(p)-1], "*")
	})
}

// text reports whether s is 1 to limit bytes of printable UTF-8 without spaces.
func text(s string, limit int) bool {
	return s != "" && len(s) <= limit && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) })
}
