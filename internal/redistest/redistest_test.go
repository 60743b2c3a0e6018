package redistest

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	durable, forgetful := Start(t, AppendFsyncAlways()), Start(t)
	for _, s := range []*Server{durable, forgetful} {
		s.Do("SET", "k", "v")
		s.Kill()
		if conn, err := net.Dial("tcp", s.Addr); err == nil {
			t.Errorf("a killed server accepts connections: %v", conn.Close())
		}
		addr := s.Addr
		s.Restart()
		if s.Addr != addr {
			t.Errorf("moved from %s to %s", addr, s.Addr)
		}
	}
	if got := durable.Do("GET", "k"); got != "v" {
		t.Errorf("with an append-only file: got %q after a restart", got)
	}
	if got := forgetful.Do("GET", "k"); got != "" {
		t.Errorf("without persistence: got %q after a restart", got)
	}
}

func TestStopHangsServer(t *testing.T) {
	t.Parallel()
	s := Start(t)
	s.Stop()
	if _, err := command(s.Addr, 100*time.Millisecond, "PING"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asking a stopped server: %v, want a timeout", err)
	}
	s.Cont()
	if got := s.Do("PING"); got != "PONG" {
		t.Errorf("PING: %q", got)
	}
	s.Stop() // The cleanup must cope.
}

func TestRestore(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{"rdb": nil, "aof": {AppendFsyncAlways()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, opts...)
			s.Do("SET", "k", "old")
			old := s.Snapshot()
			s.Do("SET", "k", "new")
			s.Do("SET", "later", "1")
			for range 2 {
				s.Restore(old)
				if got := s.Do("GET", "k"); got != "old" {
					t.Errorf("k is %q", got)
				}
				if got := s.Do("EXISTS", "later"); got != "0" {
					t.Errorf("later exists: %q", got)
				}
				s.Do("SET", "later", "2")
			}
			if len(opts) > 0 {
				s.Restart()
				if got := s.Do("GET", "later"); got != "2" {
					t.Errorf("a write after Restore was lost over a restart: %q", got)
				}
			}
		})
	}
}

func TestMaxMemory(t *testing.T) {
	t.Parallel()
	s := Start(t, MaxMemory(1, "volatile-lfu"))
	if _, err := command(s.Addr, time.Second, "SET", "k", "v"); err == nil || !strings.HasPrefix(err.Error(), "OOM") {
		t.Errorf("SET in a full server: %v", err)
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3, 1, AppendFsyncAlways())
	if len(c.Masters) != 3 || len(c.Replicas) != 3 || len(c.Addrs) != 6 {
		t.Fatalf("%d masters, %d replicas, %d addresses", len(c.Masters), len(c.Replicas), len(c.Addrs))
	}
	// The slot of "foo" is 12182, in the last third.
	c.Masters[2].Do("SET", "foo", "bar")
	if _, err := command(c.Masters[0].Addr, time.Second, "GET", "foo"); err == nil || !strings.HasPrefix(err.Error(), "MOVED 12182 "+c.Masters[2].Addr) {
		t.Errorf("asking another master: %v", err)
	}
	old := c.Masters[2].Snapshot()
	c.Masters[2].Do("SET", "foo", "baz")
	c.Masters[2].Restore(old)
	c.WaitHealthy()
	if got := c.Masters[2].Do("GET", "foo"); got != "bar" {
		t.Errorf("foo is %q", got)
	}
}
