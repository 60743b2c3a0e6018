package shard_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// realConfig is for tests in which time passes.
var realConfig = shard.RedisConfig{Shards: 2, Window: 50 * time.Millisecond, Dedupe: time.Minute, MaxSpread: 10}

// eventually polls until done.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	if !testproc.Poll(30*time.Second, 2*time.Millisecond, done) {
		t.Fatalf("never %s", what)
	}
}

func newRedis(t testing.TB, client rueidis.Client) *shard.Redis {
	t.Helper()
	r, err := shard.NewRedis(client, realConfig)
	must(t, err)
	return r
}

// TestTrueClock is about what the tests with a clock that is set leave out: that the time is the server's.
func TestTrueClock(t *testing.T) {
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		client := newClient(t, redistest.Start(t))
		trueClock(t, newRedis(t, client), func() int64 {
			time, err := command(t, client, "TIME").AsIntSlice()
			must(t, err)
			return time[0]*1_000_000 + time[1]
		})
	})
	t.Run("twin", func(t *testing.T) {
		t.Parallel()
		now := func() int64 { return time.Now().UnixMicro() }
		trueClock(t, twin.New(realConfig, now), now)
	})
}

func trueClock(t *testing.T, scripts shard.Scripts, now func() int64) {
	t.Helper()
	f := &fixture{Scripts: scripts}
	before := now()
	f.now = before / 1000
	reply, err := f.Write(t.Context(), f.batch(part(0, entry("a", 1))))
	must(t, err)
	if after := now(); reply.Micros < before || reply.Micros > after {
		t.Fatalf("answer is of %d, not between %d and %d", reply.Micros, before, after)
	}
	window := reply.Micros / 1000
	f.holds(t, 0, window, map[string]int64{"a": 1})

	const ttl = 60 * time.Millisecond
	loading := now() // it lives from some moment after this one
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 5, TTL: ttl})
	eventually(t, "sealed", func() bool {
		reply, err := f.Seal(t.Context(), 0, shard.SealedWindow{}, "g")
		must(t, err)
		if due := reply.Time-window >= realConfig.Window.Milliseconds(); due != (len(reply.Sealed) == 1) {
			t.Fatalf("at %d the window %d is due: %t; sealed are %v", reply.Time, window, due, reply.Sealed)
		}
		return len(reply.Sealed) == 1
	})
	eventually(t, "expired", func() bool {
		replies, err := f.Read(t.Context(), []shard.KeyGroup{{Shard: 0, Keys: []string{"a"}}})
		must(t, err)
		cached, age := replies[0].Values[0].Cached, replies[0].Micros-loading
		// Redis counts in whole milliseconds.
		if !cached && age < (ttl-2*time.Millisecond).Microseconds() {
			t.Fatalf("base was gone after %d µs", age)
		}
		return !cached
	})
}

// TestExpiry checks what Redis may forget by itself: bases, membership of likes, and nothing else.
func TestExpiry(t *testing.T) {
	t.Parallel()
	client := newClient(t, redistest.Start(t))
	f := clockedFixture(t, client)
	f.set(t, epochMS)
	f.sets(t, "1", liking(claiming(part(0, entry("a", 1)), timed(epochMS, "id", "v"), opaque("id", "v"),
		once(epochMS, 1000, false, "x", "v")), like("al", never)))
	f.spread(t, 0, []string{"hot"}, epochMS)
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 5, TTL: hour})
	f.advance(t, windowMS)
	f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
	f.begin(t, 0, epochMS, 0, "g", false)
	f.move(t, 0, epochMS, entry("a", 2))
	f.cached(t, 0, "a", 7)

	bases, memberships := 0, 0
	for _, name := range allKeys(t, client) {
		ttl, err := command(t, client, "PTTL", name).AsInt64()
		must(t, err)
		switch left := time.Duration(ttl) * time.Millisecond; {
		case strings.Contains(name, ":likes:"):
			if left <= 2*hour+9*time.Minute || left > 2*hour+10*time.Minute {
				t.Errorf("membership lives for another %s", left)
			}
			memberships++
		case !strings.Contains(name, ":base:"):
			equal(t, "time to live of "+name, ttl, -1)
		case left <= hour-time.Minute || left > hour:
			t.Errorf("base lives for another %s", left)
		default:
			bases++
		}
	}
	equal(t, "bases", bases, 1)
	equal(t, "memberships", memberships, 1)
}

// TestTokens checks what no answer shows: the tokens of windows are forgotten in their turn, and a shard whose list of
// windows was lost is found out although the tokens are there.
func TestTokens(t *testing.T) {
	t.Parallel()
	client := newClient(t, redistest.Start(t))
	f := clockedFixture(t, client)
	f.set(t, epochMS)
	prefix := "plusone:{" + shard.Tags(scriptConfig.Shards)[0] + "}:"
	last := int64(0)
	for range 10 {
		window := f.now
		f.add(t, 0, entry("a", 1))
		f.advance(t, windowMS)
		f.seal(t, 0, last, "g", sealReply{Windows: 1, Sealed: []int64{window}})
		f.begin(t, 0, window, last, "unused", false)
		f.move(t, 0, window, entry("a", 1))
		f.end(t, 0, window)
		last = window
	}
	n, err := command(t, client, "HLEN", prefix+"tokens").AsInt64()
	must(t, err)
	if n > 3 {
		t.Errorf("%d tokens are kept", n)
	}

	window := f.now
	f.add(t, 0, entry("a", 1))
	f.advance(t, windowMS)
	f.seal(t, 0, last, "g", sealReply{Windows: 1, Sealed: []int64{window}})
	command(t, client, "DEL", prefix+"windows")
	f.seal(t, 0, window, "g", sealReply{RolledBack: true, RestoreDue: true})
	f.noticed(t)
}

// TestFullRedis: a Redis full of data that it may not forget refuses what would add to it, as a whole, and the
// flush, which frees memory, goes on.
func TestFullRedis(t *testing.T) {
	t.Parallel()
	client := newClient(t, redistest.Start(t, redistest.Config("maxmemory-policy", "volatile-lfu")))
	f := &fixture{Scripts: newRedis(t, client)}
	// Batches are made after what was done before.
	setNow := func() {
		now, err := command(t, client, "TIME").AsIntSlice()
		must(t, err)
		f.now = now[0]*1000 + now[1]/1000 + 1
	}
	setNow()
	ctx := context.Background()

	// Two sealed windows, a base, and a bucket of claims that can be forgotten.
	var windows []int64
	for n := range 2 {
		reply, err := f.Write(ctx, f.batch(claiming(part(0, entry("a", 1), entry("b", 2)), once(f.now-1e9, 1000, false, "x", strconv.Itoa(n)))))
		must(t, err)
		equal(t, "status", reply.Status, []shard.WriteStatus{shard.WriteApplied, shard.WriteRefused}[n])
		if n == 1 {
			reply, err = f.Write(ctx, f.batch(part(0, entry("a", 4))))
			must(t, err)
		}
		windows = append(windows, reply.Micros/1000)
		eventually(t, "sealed", func() bool {
			reply, err := f.Seal(ctx, 0, shard.SealedWindow{}, "g")
			must(t, err)
			return len(reply.Sealed) == n+1
		})
	}
	must(t, f.RestoreMarkers(ctx, 1, map[string]shard.Marker{"hot": 1}))
	f.load(t, 0, 0, shard.Base{Key: "a", Total: 10})
	command(t, client, "CONFIG", "SET", "maxmemory", "1")
	eventually(t, "evicted the base", func() bool {
		return !strings.Contains(strings.Join(allKeys(t, client), " "), ":base:")
	})
	setNow()

	before := dump(t, client)
	for what, step := range map[string]func() error{
		"write": func() error {
			_, err := f.Write(ctx, f.batch(claiming(part(0, entry("a", 1)), opaque("id", "v")), part(1, entry("b", 1))))
			return err
		},
		"load": func() error {
			_, err := f.Load(ctx, 0, 0, []shard.Base{{Key: "a", TTL: hour}})
			return err
		},
		"spread": func() error {
			_, err := f.Spread(ctx, 0, []string{"a"}, 0)
			return err
		},
	} {
		if err := step(); err == nil || !strings.HasPrefix(err.Error(), "OOM ") {
			t.Errorf("%s in a full Redis: %v", what, err)
		}
	}
	equal(t, "data", dump(t, client), before)

	_, err := f.Read(ctx, []shard.KeyGroup{{Shard: 0, Keys: []string{"a"}}, {Shard: 1, Keys: []string{"hot"}}})
	must(t, err)
	sealed, err := f.Seal(ctx, 0, shard.SealedWindow{}, "g1")
	must(t, err)
	for i, w := range sealed.Sealed {
		equal(t, "sealed", w.ID, windows[i])
		f.remember(0, w)
	}
	f.begin(t, 0, windows[0], 0, "g1", false)
	f.move(t, 0, windows[0], entry("a", 1), entry("b", 2))
	f.end(t, 0, windows[0])
	f.discard(t, 0, windows[1], "g2")
	f.restoreMarkers(t, 0, map[string]shard.Marker{"hot": 1})
	f.sweep(t, 0)
	sealed, err = f.Seal(ctx, 1, shard.SealedWindow{ID: 7, Token: "gone"}, "g3") // a reset
	must(t, err)
	equal(t, "rollback noticed", sealed.RolledBack, true)
	for name := range dump(t, client) {
		if strings.Contains(name, ":w:") || strings.Contains(name, ":once:") {
			t.Errorf("%s is still there", name)
		}
	}

	command(t, client, "CONFIG", "SET", "maxmemory", "0")
	setNow()
	reply, err := f.Write(ctx, f.batch(part(0, entry("a", 1))))
	must(t, err)
	equal(t, "status", reply.Status, shard.WriteApplied)
}

// TestCountsWithoutScripts: where Redis does not have the scripts, a batch is applied, and counts are read behind the next one.
func TestCountsWithoutScripts(t *testing.T) {
	t.Parallel()
	client := newClient(t, redistest.Start(t))
	f := clockedFixture(t, client)
	f.set(t, epochMS)
	sends := func(when, actor string, counted bool) {
		t.Helper()
		b := f.batch(liking(part(0), like(actor, never)))
		b.Counts = []shard.KeyGroup{{Shard: 0, Keys: []string{"a"}}}
		reply := f.write(t, b)
		equal(t, when, []shard.LikeResult{reply.Likes[0], shard.LikeResult(len(reply.Counts))},
			[]shard.LikeResult{shard.LikeChanged, shard.LikeResult(map[bool]int{true: 1}[counted])})
	}
	sends("without scripts", "al", false)
	sends("without the script of the read", "bo", false)
	f.counts(t, 0, 2)
	sends("with both", "cy", true)
	f.counts(t, 0, 3)
}

// dump returns all data.
func dump(t testing.TB, client rueidis.Client) map[string]string {
	t.Helper()
	data := map[string]string{}
	for _, name := range allKeys(t, client) {
		value, err := command(t, client, "DUMP", name).ToString()
		must(t, err)
		data[name] = value
	}
	return data
}
