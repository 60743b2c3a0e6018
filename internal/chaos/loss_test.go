package chaos_test

import (
	"context"
	"errors"
	"flag"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

var powerFlag = flag.Bool("chaos.power", false, "also cut the power of Redis, which needs Linux 6.5 and temporary files on a disk")

const (
	lossKey     = "views/loss"
	lossCallers = 16
	// lossChanges are acknowledged before the crash. They take more than a window.
	lossChanges = 8000
)

// What a crash of Redis may take back is up to how it persists, and is nothing but what had not been drained.
func TestLoss(t *testing.T) {
	t.Parallel()
	appendOnly := func(fsync string) []redistest.Option {
		return []redistest.Option{redistest.AppendFsyncAlways(), redistest.Config("appendfsync", fsync)}
	}
	const none, some, all = 0, 1, 2 // of what is pending, as far as that is certain
	for _, c := range []struct {
		setting string
		redis   []redistest.Option
		power   bool
		loses   int
	}{
		{"no persistence", nil, false, all},
		{"snapshots, save 1 1", []redistest.Option{redistest.Config("save", "1", "1")}, false, some},
		{"appendfsync no", appendOnly("no"), false, none},
		{"appendfsync everysec", appendOnly("everysec"), false, none},
		{"appendfsync always", appendOnly("always"), false, none},
		{"appendfsync no", appendOnly("no"), true, some},
		{"appendfsync everysec", appendOnly("everysec"), true, some},
		{"appendfsync always", appendOnly("always"), true, none},
	} {
		if c.power && !*powerFlag {
			continue
		}
		crash, name := (*redistest.Server).Restart, "kill -9"
		if c.power {
			crash, name = func(s *redistest.Server) { s.PowerLoss() }, "power loss"
		}
		t.Run(c.setting+", "+name, func(t *testing.T) {
			t.Parallel()
			l := lossOf(t, redistest.Start(t, c.redis...), crash)
			t.Logf("| %s | %s | %d | %d | %.2f s |", c.setting, name, l.acknowledged, l.lost, l.last.Seconds())
			// A change in doubt may have been counted.
			if l.lost < -l.doubts || c.loses == none && l.lost > 0 || c.loses == all && l.lost <= 0 {
				t.Errorf("%d of %d acknowledged changes are lost, %d are in doubt", l.lost, l.acknowledged, l.doubts)
			}
		})
	}
}

// loss is what a crash has taken.
type loss struct {
	acknowledged, lost, doubts int64
	// last is how long before the crash the changes were acknowledged that are lost, if they were the last ones.
	last time.Duration
}

// lossOf increments a counter, crashes Redis in the middle of that, and compares.
func lossOf(t *testing.T, redis *redistest.Server, crash func(*redistest.Server)) loss {
	binary, err := plusonetest.Build(failpoints)
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{t: t, postgres: pgtest.Start(t)}
	s := plusonetest.Start(t, binary, "--redis-url="+redis.URL(), "--postgres-url="+d.postgres.URL, "--shards=1", "--window=2s")
	c := plusonetest.Dial(t, []*plusonetest.Instance{s}, client.WithTimeout(patience))
	l := lossLoad{client: c}
	var group sync.WaitGroup
	for range lossCallers {
		group.Go(l.run)
	}
	d.eventually("enough is acknowledged", func() bool { return l.count() >= lossChanges || l.failed() != nil })
	before := time.Now()
	crash(redis)
	// Calls under way go on until they are answered.
	l.stopped.Store(true)
	group.Wait()
	if err := l.failed(); err != nil {
		t.Fatal(err)
	}
	var counted int64
	d.eventually("what is counted is drained", func() bool {
		got, err := c.Get(context.Background(), lossKey, client.Fresh())
		counted = got.Count
		return err == nil && !got.Stale && ledgerTotal(t, d.postgres.URL, lossKey) == counted
	})
	return l.compare(before, counted)
}

// lossLoad increments a counter by one, again and again.
type lossLoad struct {
	client  *client.Client
	stopped atomic.Bool

	mu           sync.Mutex
	acknowledged []time.Time
	doubts       int64
	err          error
}

func (l *lossLoad) run() {
	for !l.stopped.Load() && l.failed() == nil {
		_, err := l.client.Increment(context.Background(), lossKey, 1)
		l.note(err)
	}
}

func (l *lossLoad) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acknowledged = append(l.acknowledged, time.Now())
	case errors.Is(err, client.ErrInDoubt):
		l.doubts++
	case l.err == nil && !errors.Is(err, client.ErrRequestIDExpired): // made before a crash that took ids back
		l.err = err
	}
}

func (l *lossLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

func (l *lossLoad) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *lossLoad) compare(crash time.Time, counted int64) loss {
	n := len(l.acknowledged)
	got := loss{acknowledged: int64(n), lost: int64(n) - counted, doubts: l.doubts}
	for n > 0 && l.acknowledged[n-1].After(crash) {
		n--
	}
	if got.lost > 0 && int64(n) >= got.lost {
		got.last = crash.Sub(l.acknowledged[int64(n)-got.lost])
	}
	return got
}
