package checker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/guard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a checker that answers by a function after a while, or when the question is given up.
type script struct {
	latency time.Duration
	answer  func(guard.Question) (*guardv1.CheckResponse, error)
	asked   atomic.Int64
}

func (s *script) ask(ctx context.Context, q guard.Question) (*guardv1.CheckResponse, error) {
	s.asked.Add(1)
	if s.latency > 0 {
		timer := time.NewTimer(s.latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.answer(q)
}

func (*script) close() error { return nil }

func allow(guard.Question) (*guardv1.CheckResponse, error) {
	return &guardv1.CheckResponse{Allowed: proto.Bool(true)}, nil
}

func deny(guard.Question) (*guardv1.CheckResponse, error) {
	return &guardv1.CheckResponse{Allowed: proto.Bool(false), Reason: "ACCOUNT_TOO_NEW"}, nil
}

var errDown = errors.New("it is down")

func down(guard.Question) (*guardv1.CheckResponse, error) { return nil, errDown }

// harness is a client of a script, with its log and metrics.
type harness struct {
	*Client
	t        *testing.T
	registry *prometheus.Registry
	log      bytes.Buffer // slog's handler writes one line at a time
}

func start(t *testing.T, s *script, change func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, registry: prometheus.NewRegistry()}
	config := Config{
		Timeout: 200 * time.Millisecond, MaxInFlight: 100, CacheTTL: time.Minute, CacheEntries: 1000,
		Logger: slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registry: h.registry,
	}
	if change != nil {
		change(&config)
	}
	client, err := newClient(s, config)
	if err != nil {
		t.Fatal(err)
	}
	h.Client = client
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// check asks, and describes the answer.
func (h *harness) check(q guard.Question) string { return describe(h.Check(h.t.Context(), q)) }

func describe(d guard.Decision, err error) string {
	switch {
	case errors.Is(err, guard.ErrUnavailable):
		return "unavailable"
	case err != nil:
		return err.Error()
	case d.Allowed && d.Reason == "":
		return "allowed"
	case d.Allowed:
		return "allowed, and yet " + d.Reason
	default:
		return "denied " + d.Reason
	}
}

// metric is the value of a metric, a counter with its label if it has one.
func (h *harness) metric(name string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			full := family.GetName()
			for _, label := range m.GetLabel() {
				full += " " + label.GetValue()
			}
			if full == name {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	h.t.Fatalf("there is no metric %s", name)
	return 0
}

func (h *harness) wantMetrics(want map[string]float64) {
	h.t.Helper()
	for name, value := range want {
		if got := h.metric("plusone_guard_" + name); got != value {
			h.t.Errorf("%s is %v, want %v", name, got, value)
		}
	}
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("answered %q, want %q", got, want)
	}
}

var question = guard.Question{Method: "Like", Caller: "web", Actor: "user:7", Namespace: "likes", Token: "solved"}

// An answer is kept for as long as the checker and the setting allow, and a refusal for a shorter time.
func TestAnswersAreKept(t *testing.T) {
	for _, test := range []struct {
		name    string
		allowed bool
		ttl     *durationpb.Duration
		max     time.Duration
		want    time.Duration
	}{
		{"permission", true, nil, time.Minute, time.Minute},
		{"refusal", false, nil, time.Minute, 5 * time.Second},
		{"refusal, short setting", false, nil, time.Second, time.Second},
		{"permission for less", true, durationpb.New(10 * time.Second), time.Minute, 10 * time.Second},
		{"permission for more than is kept", true, durationpb.New(time.Hour), time.Minute, time.Minute},
		{"refusal for longer than usual", false, durationpb.New(30 * time.Second), time.Minute, 30 * time.Second},
		{"permission for this time", true, durationpb.New(0), time.Minute, 0},
		{"negative", true, durationpb.New(-time.Second), time.Minute, 0},
		{"not a duration", false, &durationpb.Duration{Seconds: 1, Nanos: -1}, time.Minute, 0},
		{"nothing is kept", true, nil, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answer: func(guard.Question) (*guardv1.CheckResponse, error) {
					return &guardv1.CheckResponse{Allowed: proto.Bool(test.allowed), Reason: "NO", Ttl: test.ttl}, nil
				}}
				h := start(t, s, func(c *Config) { c.CacheTTL = test.max })
				answer := map[bool]string{true: "allowed", false: "denied NO"}[test.allowed]
				want(t, h.check(question), answer)
				if test.want > 0 {
					time.Sleep(test.want - time.Nanosecond)
					want(t, h.check(question), answer)
					h.wantMetrics(map[string]float64{"cache_hits_total": 1, "call_seconds": 1})
					time.Sleep(time.Nanosecond)
				}
				before := s.asked.Load()
				want(t, h.check(question), answer)
				if before != 1 || s.asked.Load() != 2 {
					t.Errorf("asked %d times, then %d times", before, s.asked.Load())
				}
			})
		})
	}
}

// Each part of a question matters, also where two parts meet.
func TestQuestionsAreToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: allow}
		h := start(t, s, nil)
		different := []guard.Question{
			question,
			{Method: "Unlike", Caller: "web", Actor: "user:7", Namespace: "likes", Token: "solved"},
			{Method: "Like", Caller: "app", Actor: "user:7", Namespace: "likes", Token: "solved"},
			{Method: "Like", Caller: "web", Actor: "user:8", Namespace: "likes", Token: "solved"},
			{Method: "Like", Caller: "web", Actor: "user:7", Namespace: "plays", Token: "solved"},
			{Method: "Like", Caller: "web", Actor: "user:7", Namespace: "likes", Token: ""},
			{Method: "Like", Caller: "web", Actor: "user:7l", Namespace: "ikes", Token: "solved"},
			{Method: "Like", Caller: "web", Actor: "user:7", Namespace: "likess", Token: "olved"},
		}
		for range 2 {
			for _, q := range different {
				want(t, h.check(q), "allowed")
			}
		}
		if asked := s.asked.Load(); asked != int64(len(different)) {
			t.Errorf("asked %d times, want %d", asked, len(different))
		}
	})
}

// Many who wait for the same answer cost one question, and whoever does not want to wait does not end it.
func TestOneQuestionForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: deny, latency: 100 * time.Millisecond}
		h := start(t, s, func(c *Config) { c.CacheTTL = 0 })
		var group sync.WaitGroup
		impatient, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		group.Go(func() {
			_, err := h.Check(impatient, question)
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, guard.ErrUnavailable) {
				t.Errorf("whoever would not wait got %v", err)
			}
		})
		synctest.Wait() // the impatient one has asked
		for range 50 {
			group.Go(func() { want(t, h.check(question), "denied ACCOUNT_TOO_NEW") })
		}
		group.Wait()
		if asked := s.asked.Load(); asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		h.wantMetrics(map[string]float64{"decisions_total denied": 50, "cache_hits_total": 0})
	})
}

// Whoever comes just as the answer does, does not ask again: a token may be good for one question.
func TestNoQuestionTwice(t *testing.T) {
	s := &script{answer: allow}
	h := start(t, s, func(c *Config) { c.CacheEntries = 100_000 })
	const rounds = 200
	for round := range rounds {
		q := guard.Question{Method: "Like", Actor: fmt.Sprint("user:", round)}
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() { want(t, h.check(q), "allowed") })
		}
		group.Wait()
	}
	if asked := s.asked.Load(); asked != rounds {
		t.Errorf("asked %d times, want %d", asked, rounds)
	}
}

// A failure is decided as it was chosen, at the latest when the time for a question is over.
func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name   string
		script *script
		took   time.Duration
		cause  string
	}{
		{"down", &script{answer: down}, 0, "it is down"},
		{"slow", &script{answer: allow, latency: time.Hour}, 200 * time.Millisecond, "no answer within 200ms"},
		{"no decision", &script{answer: func(guard.Question) (*guardv1.CheckResponse, error) {
			return &guardv1.CheckResponse{Reason: "ACCOUNT_TOO_NEW"}, nil
		}}, 0, "does not say whether"},
	} {
		for _, open := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, " open=", open), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &script{answer: test.script.answer, latency: test.script.latency}
					h := start(t, s, func(c *Config) { c.FailOpen = open })
					began := time.Now()
					answer, decision, meanwhile := "unavailable", "failed_closed", "changes=refused"
					if open {
						answer, decision, meanwhile = "allowed", "failed_open", `changes="let in unchecked"`
					}
					for range 2 { // it is not kept
						want(t, h.check(question), answer)
					}
					if took := time.Since(began); took != 2*test.took {
						t.Errorf("took %v", took)
					}
					h.wantMetrics(map[string]float64{"decisions_total " + decision: 2, "call_seconds": 2, "decisions_total denied": 0})
					log := h.log.String()
					for _, part := range []string{"level=ERROR", test.cause, meanwhile} {
						if !strings.Contains(log, part) {
							t.Errorf("the log lacks %q: %s", part, log)
						}
					}
					if strings.Contains(log, question.Token) || strings.Contains(log, question.Actor) {
						t.Errorf("the log has the token or the actor: %s", log)
					}
				})
			})
		}
	}
}

// That a question took too long is not taken for the caller's deadline.
func TestLateAnswerIsNotTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &script{answer: allow, latency: time.Hour}, nil)
		_, err := h.Check(t.Context(), question)
		if !errors.Is(err, guard.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// One question too many is a failure, and does not wait.
func TestQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: allow, latency: 100 * time.Millisecond}
		h := start(t, s, func(c *Config) { c.MaxInFlight = 3 })
		var group sync.WaitGroup
		for n := range 3 {
			group.Go(func() { want(t, h.check(guard.Question{Actor: fmt.Sprint(n)}), "allowed") })
		}
		synctest.Wait()
		group.Go(func() { want(t, h.check(guard.Question{Actor: "2"}), "allowed") }) // waits with others
		began := time.Now()
		want(t, h.check(guard.Question{Actor: "3"}), "unavailable")
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		group.Wait()
		want(t, h.check(guard.Question{Actor: "3"}), "allowed")
		h.wantMetrics(map[string]float64{"call_seconds": 4, "decisions_total failed_closed": 1, "breaker_open": 0})
	})
}

// What cannot be passed on is refused, also where a failure would be let in.
func TestBadTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: allow}
		h := start(t, s, func(c *Config) { c.FailOpen = true })
		for _, token := range []string{strings.Repeat("x", guard.MaxTokenBytes+1), "a\nb", "\xff", "ä", "\x7f"} {
			want(t, h.check(guard.Question{Token: token}), "denied "+guard.ReasonTokenInvalid)
		}
		if s.asked.Load() != 0 {
			t.Error("the checker was asked")
		}
		want(t, h.check(guard.Question{Token: strings.Repeat("x", guard.MaxTokenBytes)}), "allowed")
		want(t, h.check(guard.Question{Token: "a ~"}), "allowed")
		h.wantMetrics(map[string]float64{"decisions_total denied": 5, "decisions_total allowed": 2})
	})
}

// A refusal is one, whatever its reason looks like.
func TestReasons(t *testing.T) {
	for reason, expected := range map[string]string{
		"ACCOUNT_TOO_NEW":           "ACCOUNT_TOO_NEW",
		"L2":                        "L2",
		strings.Repeat("A", 63):     strings.Repeat("A", 63),
		"":                          "",
		strings.Repeat("A", 64):     "",
		"account_too_new":           "",
		"TOO NEW":                   "",
		"TOO_NEW_":                  "",
		"1ST":                       "",
		"TOO_NEW\n":                 "",
		"\xff\xfe":                  "",
		"<script>alert(1)</script>": "",
		"TOO_NEW: user:7 is new":    "",
	} {
		a, err := answerOf(&guardv1.CheckResponse{Allowed: proto.Bool(false), Reason: reason})
		if err != nil || a.allowed || a.reason != expected {
			t.Errorf("%q: %+v, %v", reason, a, err)
		}
	}
	a, err := answerOf(&guardv1.CheckResponse{Allowed: proto.Bool(true), Reason: "WHY_NOT"})
	if err != nil || !a.allowed || a.reason != "" {
		t.Errorf("allowed with a reason: %+v, %v", a, err)
	}
}

// A client that is closed ends what is under way, and asks nothing more.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: allow, latency: time.Hour}
		h := start(t, s, func(c *Config) { c.Timeout = time.Hour })
		var group sync.WaitGroup
		group.Go(func() { want(t, h.check(question), "unavailable") })
		synctest.Wait()
		for range 2 {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		}
		group.Wait()
		want(t, h.check(question), "unavailable")
		if s.asked.Load() != 1 {
			t.Errorf("asked %d times", s.asked.Load())
		}
	})
}

// The cache stays within its bound.
func TestCacheIsBounded(t *testing.T) {
	s := &script{answer: allow}
	h := start(t, s, func(c *Config) { c.CacheEntries = 100 })
	for n := range 5000 {
		want(t, h.check(guard.Question{Actor: fmt.Sprint(n)}), "allowed")
	}
	h.cache.entries.CleanUp()
	if n := h.cache.entries.EstimatedSize(); n > 100 {
		t.Errorf("the cache has %d entries", n)
	}
}

// BenchmarkKept is a decision by an answer that was kept.
func BenchmarkKept(b *testing.B) {
	client, err := newClient(&script{answer: allow}, Config{
		Timeout: time.Second, MaxInFlight: 1, CacheTTL: time.Hour, CacheEntries: 10,
		Logger: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Check(b.Context(), question); err != nil {
			b.Fatal(err)
		}
	}
}
