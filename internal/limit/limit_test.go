package limit

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func newMetrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

func valueOf(t *testing.T, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func rate(t testing.TB, text string) Rate {
	t.Helper()
	r, err := ParseRate(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type limiter interface {
	Take(ctx context.Context, wants []Want) (Verdict, error)
}

func take(t testing.TB, l limiter, wants ...Want) Verdict {
	t.Helper()
	v, err := l.Take(t.Context(), wants)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestParseRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Rate{
		"100/1m":              {Tokens: 100, Per: time.Minute, Burst: 100},
		" 100/1m  burst  20 ": {Tokens: 100, Per: time.Minute, Burst: 20},
		"1/24h":               {Tokens: 1, Per: 24 * time.Hour, Burst: 1},
		"1000000/1s":          {Tokens: 1_000_000, Per: time.Second, Burst: 1_000_000},
	} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%q is written %q, which is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "100", "100/", "/1m", "100/m", "0/1m", "-1/1m", "1.5/1m", "100/1m 20", "100/1m burst", "100/1m burst 0",
		"100/1m burst 20 30", "100/0s", "100/-1m", "1/1us", "1/800h", "1000001/1s", "9999999999/1m", "1/1h burst 1000",
	} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

// exercise tests what any limiter does. Advance lets time pass.
func exercise(t *testing.T, l limiter, advance func(time.Duration)) {
	actor := func(scope, who, r string) Want {
		return Want{Kind: Actor, Scope: scope, Who: who, Rate: rate(t, r), Cost: 1}
	}

	// A bucket is full at first, and is filled token by token.
	first := actor("views", "a", "10/1s burst 3")
	for i := range 3 {
		if v := take(t, l, first); !v.Allowed {
			t.Fatalf("token %d: %+v", i, v)
		}
	}
	v := take(t, l, first)
	if v.Allowed || v.Wait <= 0 || v.Wait > 100*time.Millisecond {
		t.Fatalf("an empty bucket: %+v", v)
	}
	advance(v.Wait)
	if v := take(t, l, first); !v.Allowed {
		t.Fatalf("after the wait: %+v", v)
	}

	// Others have buckets of their own, and so have other scopes and kinds.
	slow := actor("views", "b", "1/1h")
	one := []Want{
		slow,
		actor("plays", "b", "1/1h"),
		{Kind: Caller, Scope: "views", Who: "b", Rate: slow.Rate, Cost: 1},
		{Kind: ActorKey, Scope: "views", Who: "b", Key: "views/1", Rate: slow.Rate, Cost: 1},
		{Kind: ActorKey, Scope: "views", Who: "b", Key: "views/2", Rate: slow.Rate, Cost: 1},
	}
	for i, w := range one {
		if v := take(t, l, w); !v.Allowed {
			t.Errorf("bucket %d: %+v", i, v)
		}
		if v := take(t, l, w); v.Allowed || v.Wait < 59*time.Minute || v.Wait > time.Hour {
			t.Errorf("bucket %d, empty: %+v", i, v)
		}
	}

	// All or none: a bucket that lacks tokens costs the others none, and is the one that is named.
	other, empty := actor("likes", "c", "1/1h"), slow
	if v := take(t, l, other, empty); v.Allowed || v.Lacking != 1 {
		t.Errorf("one of two is empty: %+v", v)
	}
	if v := take(t, l, empty, actor("likes", "b", "1/1h")); v.Allowed || v.Lacking != 0 {
		t.Errorf("one of two is empty: %+v", v)
	}
	if v := take(t, l, other); !v.Allowed {
		t.Errorf("a token was taken by a request that was refused: %+v", v)
	}

	// What costs more than a bucket holds takes a full one, and is paid for later.
	batch := Want{Kind: Caller, Scope: "views", Who: "batches", Rate: rate(t, "100/1h"), Cost: 150}
	if v := take(t, l, batch); !v.Allowed {
		t.Fatalf("a large batch: %+v", v)
	}
	batch.Cost = 1
	if v := take(t, l, batch); v.Allowed || v.Wait < 30*time.Minute || v.Wait > 31*time.Minute {
		t.Errorf("after a large batch: %+v", v)
	}

	// What would take longer to pay for than can be told is owed all the same.
	debt := Want{Kind: Caller, Scope: "views", Who: "debtor", Rate: rate(t, "1/480h"), Cost: 10_000}
	if v := take(t, l, debt); !v.Allowed {
		t.Fatalf("a batch that takes centuries: %+v", v)
	}
	debt.Cost = 1
	for range 2 {
		if v := take(t, l, debt); v.Allowed || v.Wait < 70*365*24*time.Hour {
			t.Errorf("after a batch that takes centuries: %+v", v)
		}
	}
	if v := take(t, l, actor("views", "d", "1/1h"), debt); v.Allowed || v.Lacking != 1 {
		t.Errorf("a debtor beside another: %+v", v)
	}

	// Another rate of the same bucket holds at once.
	if v := take(t, l, Want{Kind: Actor, Scope: "views", Who: "b", Rate: rate(t, "2/1h burst 10"), Cost: 1}); !v.Allowed {
		t.Errorf("a rate that was raised: %+v", v)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		exercise(t, NewMemory(newMetrics()), func(d time.Duration) { <-time.After(d) })
	})
}

// Memory is bounded, and the buckets that would be full first make room.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	m := NewMemory(newMetrics())
	m.room = 2 * memorySample
	empty := Want{Kind: Actor, Who: "empty", Rate: rate(t, "1/24h"), Cost: 1}
	take(t, m, empty)
	names := [2]byte{}
	for i := range 64 * 4 * m.room {
		names[0], names[1] = byte(i), byte(i>>8)
		take(t, m, Want{Kind: ActorKey, Who: "a", Key: string(names[:]), Rate: rate(t, "1/1h"), Cost: 1})
	}
	held := 0
	for i := range m.stripes {
		held += len(m.stripes[i].full)
	}
	if held > 64*m.room || valueOf(t, m.metrics.evicted) == 0 {
		t.Errorf("%d buckets are held, %v were evicted", held, valueOf(t, m.metrics.evicted))
	}
	if v := take(t, m, empty); v.Allowed {
		t.Error("the bucket that would be full last was evicted")
	}
}

// However many ask at once, a bucket gives what it has.
func TestMemoryRace(t *testing.T) {
	t.Parallel()
	race(t, NewMemory(newMetrics()))
}

// race has many ask limiters that share their buckets.
func race(t *testing.T, limiters ...limiter) {
	const callers, each, holds = 16, 25, 100
	want := Want{Kind: Caller, Scope: "race", Who: "all", Rate: rate(t, "100/24h"), Cost: 1}
	results := make(chan int)
	for i := range callers {
		go func() {
			allowed := 0
			for range each {
				v, err := limiters[i%len(limiters)].Take(t.Context(), []Want{want})
				if err != nil {
					t.Error(err)
				}
				if v.Allowed {
					allowed++
				}
			}
			results <- allowed
		}()
	}
	total := 0
	for range callers {
		total += <-results
	}
	if total != holds {
		t.Errorf("%d were allowed, the bucket holds %d", total, holds)
	}
}

func BenchmarkMemory(b *testing.B) {
	m := NewMemory(newMetrics())
	wants := []Want{
		{Kind: ActorKey, Scope: "views", Who: "user:1", Key: "views/post:1", Rate: rate(b, "1000000/1s"), Cost: 1},
		{Kind: Caller, Scope: "views", Who: "web", Rate: rate(b, "1000000/1s"), Cost: 1},
	}
	for b.Loop() {
		if _, err := m.Take(b.Context(), wants); err != nil {
			b.Fatal(err)
		}
	}
}
