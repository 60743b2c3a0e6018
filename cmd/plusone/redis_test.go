package main_test

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// TestWaysToRedis: Redis is reached by TLS, whose certificate must be good, and by a socket in the file system.
func TestWaysToRedis(t *testing.T) {
	t.Parallel()
	dir := testproc.TempDir(t)
	files := certtest.NewAuthority(t).Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, dir, "redis")
	port, err := testproc.ReservePort()
	must(t, err)
	t.Cleanup(func() { must(t, port.Release()) })
	socket := filepath.Join(dir, "redis.sock")
	redistest.Start(t,
		redistest.Config("tls-port", strconv.Itoa(port.Number)), redistest.Config("tls-auth-clients", "no"),
		redistest.Config("tls-cert-file", files.Certificate), redistest.Config("tls-key-file", files.Key),
		redistest.Config("tls-ca-cert-file", files.Certificate), redistest.Config("unixsocket", socket))
	postgres := pgtest.NewDatabase(t)
	for i, url := range []string{"rediss://" + port.Addr() + "?skip_verify=true", "unix://" + socket} {
		s := start(t, shardedArgs(url, postgres)...)
		c := dial(t, s)
		_, err := c.Increment(t.Context(), "views/any", 1)
		must(t, err)
		if got := count(t, c, "views/any"); got != int64(i+1) {
			t.Errorf("by %s: %d, want %d", url, got, i+1)
		}
		s.Terminate()
	}
	output, code := execute(t, nil, append([]string{"serve"}, shardedArgs("rediss://"+port.Addr(), postgres)...)...)
	if code == 0 || !strings.Contains(output, "certificate") {
		t.Errorf("with a certificate of a stranger it ended with %d:\n%s", code, output)
	}
}
