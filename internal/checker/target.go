package checker

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Target is where a checker is. The zero value is none.
type Target struct{ url *url.URL }

// ParseTarget reads grpc://host:port, grpcs://host:port, or the http:// or https:// URL that questions are posted to.
// Errors do not repeat the text, which may hold what it should not.
func ParseTarget(text string) (Target, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Target{}, errors.New("is not a URL")
	}
	t := Target{u}
	switch u.Scheme {
	case "grpc", "grpcs":
		if u.Port() == "" {
			return Target{}, errors.New("needs a port")
		}
		if u.Path != "" && u.Path != "/" {
			return Target{}, errors.New("has a path, which gRPC does not have")
		}
	case "http", "https":
	default:
		return Target{}, errors.New("must have the scheme grpc, grpcs, http or https")
	}
	switch {
	case u.Hostname() == "":
		return Target{}, errors.New("lacks the host")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return Target{}, errors.New("must have no user, query or fragment: a secret belongs into --guard-token-file")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return Target{}, errors.New("has a port that is none")
		}
	}
	return t, nil
}

// Encrypted reports whether the checker is asked over TLS.
func (t Target) Encrypted() bool { return t.url.Scheme == "grpcs" || t.url.Scheme == "https" }

// Loopback reports whether the checker is on this host.
func (t Target) Loopback() bool {
	host := t.url.Hostname()
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// Addr is its host, and port if there is one.
func (t Target) Addr() string { return t.url.Host }

// dial returns what asks the target of a configuration.
func dial(c Config) (asker, error) {
	switch c.Target.url.Scheme {
	case "grpc", "grpcs":
		return dialGRPC(c)
	default:
		return dialHTTP(c), nil
	}
}

// bearer is the value of the header by which plusone shows who it is, or empty.
func (c *Config) bearer() string {
	if c.Token == nil {
		return ""
	}
	if token := c.Token(); token != "" {
		return "Bearer " + token
	}
	return ""
}
