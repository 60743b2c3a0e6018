package deny

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"

	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := Parse([]byte("# spammers\r\nuser:1\r\n\n  user:2  # since May\nuser:#3\n#user:4\nuser:1\nünïcode"))
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"user:#3", "user:1", "user:2", "ünïcode"}) {
		t.Errorf("%q", names)
	}
	if !got.Denied("user:1") || got.Denied("user:4") || got.Denied("") {
		t.Error("the wrong actors are denied")
	}
	if got, err := Parse(nil); err != nil || len(got) != 0 {
		t.Errorf("an empty file: %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"user:1\nuser 2":                  "line 2: one actor a line",
		"\n" + strings.Repeat("a", 129):   "line 2: an actor is 1 to 128 bytes",
		"user:\x01":                       "line 1: an actor is 1 to 128 bytes",
		"user:\xff":                       "line 1: an actor is 1 to 128 bytes",
		"user:1\nuser:2\tuser:3 # a tab ": "line 2: an actor is 1 to 128 bytes",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("# a\nuser:1 # b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		actors, err := Parse(data)
		if err != nil {
			return
		}
		for actor := range actors {
			if !valid(actor) || actor == "" || actor[0] == '#' {
				t.Errorf("%q", actor)
			}
		}
	})
}

func open(t *testing.T, server *redistest.Server) (*RedisSet, error) {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr}, DisableCache: true, ForceSingleClient: true, ConnWriteTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	s, err := OpenRedis(t.Context(), client, RedisConfig{
		Key: "plusone:denied", Interval: 20 * time.Millisecond, Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func gauge(t *testing.T, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(10*time.Second, 5*time.Millisecond, done) {
		t.Errorf("never: %s", what)
	}
}

func TestRedisSet(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do("EVAL", `for i = 1, 5000 do redis.call('SADD', 'plusone:denied', 'user:' .. i) end`, "0")
	s, err := open(t, server)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5001 {
		if denied := s.Denied(fmt.Sprint("user:", i)); denied != (i > 0) {
			t.Fatalf("user:%d: %t", i, denied)
		}
	}
	server.Do("SREM", "plusone:denied", "user:1")
	server.Do("SADD", "plusone:denied", "late")
	eventually(t, "changes of the set are read", func() bool { return s.Denied("late") && !s.Denied("user:1") })

	// What cannot be read, for whatever reason, changes nothing.
	// In one step, as a set that is gone is an empty one.
	server.Do("EVAL", `redis.call('RENAME', 'plusone:denied', 'kept') redis.call('SET', 'plusone:denied', 'no set')`, "0")
	eventually(t, "a key of another type is noticed", func() bool { return gauge(t, s.cfg.Metrics.failing) == 1 })
	if !s.Denied("late") || gauge(t, s.cfg.Metrics.size) != 5000 {
		t.Error("the set that was read before is not in force")
	}
	server.Do("RENAME", "kept", "plusone:denied")
	eventually(t, "it is read again", func() bool { return gauge(t, s.cfg.Metrics.failing) == 0 })
	server.Do("EVAL", `for i = 1, 100000 do redis.call('SADD', 'plusone:denied', 'many:' .. i) end`, "0")
	if err := s.Reload(t.Context()); err == nil || s.Denied("many:1") || !s.Denied("late") {
		t.Errorf("a set with too many actors: %v", err)
	}
	server.Do("DEL", "plusone:denied")
	eventually(t, "a set that is gone is empty", func() bool { return !s.Denied("late") && gauge(t, s.cfg.Metrics.failing) == 0 })
	server.Do("SADD", "plusone:denied", "last")
	eventually(t, "it is there again", func() bool { return s.Denied("last") })
	server.Kill()
	eventually(t, "a Redis that is down is noticed", func() bool { return gauge(t, s.cfg.Metrics.failing) == 1 })
	if !s.Denied("last") {
		t.Error("while Redis is down, nobody is denied")
	}
}

// At the start, what cannot be read is an error.
func TestRedisSetThatIsNone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do("SET", "plusone:denied", "no set")
	if _, err := open(t, server); err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Error(err)
	}
}

// Actors may be asked for while the set is read.
func TestRedisSetRace(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do("SADD", "plusone:denied", "always")
	s, err := open(t, server)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if !s.Denied("always") {
				t.Error("an actor who is always denied was not")
				return
			}
		}
	}()
	for range 50 {
		if err := s.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cancel()
	<-done
}
