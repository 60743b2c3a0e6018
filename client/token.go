package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// tokenAge is how long the content of a token file is used before it is read again. Whoever rotates tokens lets the old one
// live on for longer.
const tokenAge = 10 * time.Second

// maxTokenBytes is what servers take.
const maxTokenBytes = 8 << 10

// WithToken authenticates calls by a bearer token: one that "plusone token" has drawn, or a JWT. It needs
// WithTransportCredentials, since a token that crosses a network in plain text is anybody's; Dial fails otherwise.
func WithToken(token string) Option {
	return withTokens(func() (string, error) { return token, nil })
}

// WithTokenFile is WithToken with the token in a file, which may be replaced: it is read again after 10 seconds. White space
// around the token is no part of it. While the file cannot be read, the last token is used.
func WithTokenFile(path string) Option {
	file := &tokenFile{path: path}
	return withTokens(file.token)
}

func withTokens(token func() (string, error)) Option {
	return WithDialOptions(grpc.WithPerRPCCredentials(tokenCredentials{token}))
}

// tokenCredentials add a token to each call.
type tokenCredentials struct{ token func() (string, error) }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c tokenCredentials) GetRequestMetadata(_ context.Context, uri ...string) (map[string]string, error) {
	token, err := c.token()
	if err == nil {
		err = checkToken(token)
	}
	switch {
	case err == nil:
	case len(uri) > 0 && strings.HasSuffix(uri[0], "/grpc.health.v1.Health"):
		// By its health a connection becomes ready, and only then a call can fail for want of a token.
		return nil, nil
	default:
		return nil, fmt.Errorf("plusone: token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (tokenCredentials) RequireTransportSecurity() bool { return true }

func checkToken(token string) error {
	if token == "" || len(token) > maxTokenBytes || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("it must be printable ASCII without spaces, and not be empty or longer than 8 kB")
	}
	return nil
}

// tokenFile reads a token when it is needed. It may be used concurrently.
type tokenFile struct {
	path string

	mu    sync.Mutex
	last  string
	until time.Time // when last is read again
}

func (f *tokenFile) token() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Before(f.until) {
		return f.last, nil
	}
	text, err := os.ReadFile(f.path)
	token := strings.TrimSpace(string(text))
	if err == nil {
		err = checkToken(token)
	}
	switch {
	case err == nil:
		f.last, f.until = token, now.Add(tokenAge)
	case f.last == "":
		return "", err
	default:
		f.until = now.Add(time.Second)
	}
	return f.last, nil
}
