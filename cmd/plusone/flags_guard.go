package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/checker"
	"github.com/plusone-dev/plusone/internal/reload"
)

// guardFlags say which checker is asked about changes.
type guardFlags struct {
	GuardURL          string        `group:"guard" name:"guard-url" placeholder:"URL" help:"Checker that is asked whether an actor may change a counter, as grpc:// or grpcs://host:port, or as the http:// or https:// URL that questions are posted to. Without TLS only on loopback, unless told --insecure."`
	GuardTokenFile    string        `group:"guard" placeholder:"FILE" help:"File with the secret by which plusone shows the checker who it is, sent as a bearer token. It is read again when it changes."`
	GuardCA           string        `group:"guard" name:"guard-ca" placeholder:"FILE" help:"PEM file of the authorities that may have signed the checker's certificate, in place of those of the system."`
	GuardTimeout      time.Duration `group:"guard" default:"200ms" help:"How long a question may take, less than --request-timeout. A change waits for it."`
	GuardMaxInFlight  int           `group:"guard" default:"100" help:"Questions under way at once. One more is taken for a failure."`
	GuardCacheTTL     time.Duration `group:"guard" name:"guard-cache-ttl" default:"1m" help:"How long an answer is kept at most; the checker may ask for less. Longer spares it questions, and makes a change of its mind come later. 0 keeps none."`
	GuardCacheEntries int           `group:"guard" default:"100000" help:"Answers that are kept, of some 200 bytes each."`
	GuardOnFailure    string        `group:"guard" default:"closed" enum:"closed,open" help:"What becomes of a change if the checker cannot tell: closed refuses it, open lets it in unchecked."`
}

const (
	maxSecretBytes = 4096
	maxCABytes     = 1 << 20
)

// checkGuard reports what is wrong with the flags of the guard, and those that were given without effect.
func (c *serveCommand) checkGuard(given []*kong.Flag) error {
	f := &c.guardFlags
	if f.GuardURL == "" {
		var errs []error
		for _, name := range givenNames(given, "guard-") {
			errs = append(errs, fmt.Errorf("--%s has no effect without --guard-url", name))
		}
		return errors.Join(errs...)
	}
	errs := []error{
		between("--guard-timeout", f.GuardTimeout, time.Millisecond, 10*time.Second),
		between("--guard-max-in-flight", f.GuardMaxInFlight, 1, 10_000),
		between("--guard-cache-ttl", f.GuardCacheTTL, 0, 24*time.Hour),
		between("--guard-cache-entries", f.GuardCacheEntries, 1, 10_000_000),
	}
	if f.GuardCacheTTL == 0 && len(givenNames(given, "guard-cache-entries")) > 0 {
		errs = append(errs, errors.New("--guard-cache-entries has no effect with --guard-cache-ttl=0"))
	}
	if c.PolicyFile == "" {
		errs = append(errs, errors.New("--guard-url has no effect without --policy-file, where policies say guard: true"))
	}
	if f.GuardTimeout >= c.RequestTimeout {
		// Else a call would end before the guard has decided, whatever --guard-on-failure says.
		errs = append(errs, fmt.Errorf("--guard-timeout is %v, and must be less than --request-timeout, which is %v",
			f.GuardTimeout, c.RequestTimeout))
	}
	target, err := checker.ParseTarget(f.GuardURL)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("--guard-url %w", err))
	case target.Encrypted():
	case f.GuardCA != "":
		errs = append(errs, errors.New("--guard-ca has no effect without TLS, which the schemes grpcs and https have"))
	case !target.Loopback() && !c.Insecure:
		errs = append(errs, errors.New("--guard-url is neither encrypted nor on loopback: whoever is between could let "+
			"every change in; use the scheme grpcs or https, or set --insecure"))
	}
	return errors.Join(errs...)
}

// givenNames are the names of the given flags that begin with a prefix, each once.
func givenNames(given []*kong.Flag, prefix string) []string {
	var names []string
	seen := map[string]bool{}
	for _, flag := range given {
		if strings.HasPrefix(flag.Name, prefix) && !seen[flag.Name] {
			seen[flag.Name] = true
			names = append(names, flag.Name)
		}
	}
	return names
}

// openedGuard is a checker's client and what it was made with. A nil one asks nobody.
type openedGuard struct {
	client *checker.Client
	secret *reload.File[string]
}

// open returns the client of the checker, or nil if there is none.
func (f *guardFlags) open(registry prometheus.Registerer, reloads *reload.Metrics, logger *slog.Logger) (*openedGuard, error) {
	if f.GuardURL == "" {
		return nil, nil //nolint:nilnil // nobody is asked
	}
	target, err := checker.ParseTarget(f.GuardURL)
	if err != nil {
		return nil, fmt.Errorf("--guard-url %w", err)
	}
	c := checker.Config{
		Target: target, Timeout: f.GuardTimeout, MaxInFlight: f.GuardMaxInFlight,
		CacheTTL: f.GuardCacheTTL, CacheEntries: f.GuardCacheEntries, FailOpen: f.GuardOnFailure == "open",
		Logger: logger, Registry: registry,
	}
	if f.GuardCA != "" {
		if c.CA, err = readAuthorities(f.GuardCA); err != nil {
			return nil, fmt.Errorf("--guard-ca: %w", err)
		}
	}
	opened := &openedGuard{}
	if f.GuardTokenFile != "" {
		opened.secret, err = reload.Open(reload.Options{
			Name: "guard_token", Path: f.GuardTokenFile, MaxBytes: maxSecretBytes, Logger: logger, Metrics: reloads,
		}, parseSecret)
		if err != nil {
			return nil, fmt.Errorf("--guard-token-file: %w", err)
		}
		c.Token = opened.secret.Get
	}
	if opened.client, err = checker.New(c); err != nil {
		opened.close()
		return nil, err
	}
	logger.Info("a checker is asked about changes", "addr", target.Addr(), "tls", target.Encrypted(), "on_failure", f.GuardOnFailure)
	return opened, nil
}

// close ends the questions under way. That a connection is closed badly does not matter any more.
func (g *openedGuard) close() {
	if g == nil {
		return
	}
	if g.client != nil {
		_ = g.client.Close()
	}
	if g.secret != nil {
		g.secret.Close()
	}
}

// parseSecret reads a file that holds a secret and nothing else.
func parseSecret(data []byte) (string, error) {
	text := string(bytes.TrimRight(data, "\r\n"))
	if text == "" {
		return "", errors.New("is empty")
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return "", errors.New("must hold one line of printable ASCII without spaces")
		}
	}
	return text, nil
}

// readAuthorities reads a PEM file of certificates.
func readAuthorities(path string) (*x509.CertPool, error) {
	text, err := readFile(path, maxCABytes)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", path)
	}
	return pool, nil
}
