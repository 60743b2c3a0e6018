package client_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/plusone-dev/plusone/client"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	certificate, roots := selfSigned(t)
	tls := client.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, ""))
	var got []string
	note := func(ctx context.Context, apply func() (any, error)) (any, error) {
		got = append(got, strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), "+"))
		return apply()
	}
	server := serveOn(t, serverOptions{
		network: "tcp", addr: "127.0.0.1:0", creds: credentials.NewServerTLSFromCert(&certificate),
	}, newFakeStore(), note, note, note)
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	increment := func(c *client.Client) error {
		_, err := c.Increment(patient(t), "views/a", 1)
		return err
	}
	if err := increment(dial(t, server.addr, tls, client.WithToken("one"))); err != nil {
		t.Error(err)
	}
	write("two\n")
	fromFile := dial(t, server.addr, tls, client.WithTokenFile(path))
	if err := increment(fromFile); err != nil {
		t.Error(err)
	}
	write("") // it was read a moment ago
	if err := increment(fromFile); err != nil {
		t.Error(err)
	}
	if want := "Bearer one Bearer two Bearer two"; strings.Join(got, " ") != want {
		t.Errorf("the server got %q, want %q", strings.Join(got, " "), want)
	}
	for name, option := range map[string]client.Option{
		"an empty file": client.WithTokenFile(path), "no file": client.WithTokenFile(path + "x"), "no token": client.WithToken(""),
		"two lines": client.WithToken("a\nb"), "a long one": client.WithToken(strings.Repeat("a", 9000)),
	} {
		err := increment(dial(t, server.addr, tls, option))
		if !errors.Is(err, client.ErrUnauthenticated) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := client.Dial(server.addr, client.WithToken("secret")); err == nil {
		_ = c.Close()
		t.Error("a token is sent in plain text")
	} else if strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}
