package server

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/guard"
	"github.com/plusone-dev/plusone/internal/identity"
	"github.com/plusone-dev/plusone/internal/limit"
	"github.com/plusone-dev/plusone/internal/policy"
)

// policySet is policies that a test changes.
type policySet struct{ atomic.Pointer[policy.Set] }

func (s *policySet) Of(namespace string) *policy.Policy { return s.Load().Of(namespace) }

func (s *policySet) set(t testing.TB, text string) {
	t.Helper()
	set, err := policy.Parse([]byte(text), policy.Bounds{MaxDelta: DefaultMaxDelta, DedupeWindow: time.Hour, Guard: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Store(set)
}

type deniedActors map[string]bool

func (d deniedActors) Denied(actor string) bool { return d[actor] }

// scriptedGuard answers by the actor, and records what it was asked.
type scriptedGuard struct {
	mu    sync.Mutex
	asked []guard.Question
}

func (g *scriptedGuard) Check(_ context.Context, q guard.Question) (guard.Decision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, q)
	switch q.Actor {
	case "bot":
		return guard.Decision{Reason: "TOO_YOUNG"}, nil
	case "unknown":
		return guard.Decision{}, errDriver
	}
	return guard.Decision{Allowed: true}, nil
}

// gated is a service with a gate, without a network.
type gated struct {
	*counterService
	store    *scriptedStore
	policies *policySet
	guard    *scriptedGuard
}

func newGated(t testing.TB, text string) *gated {
	t.Helper()
	g := &gated{store: &scriptedStore{}, policies: &policySet{}, guard: &scriptedGuard{}}
	g.policies.set(t, text)
	g.counterService = newService(t, g.store, Config{
		Policies: g.policies, Limiter: limit.NewMemory(limit.NewMetrics(prometheus.NewRegistry())),
		Guard: g.guard, Denied: deniedActors{"spammer": true}, Authenticator: people,
	})
	return g
}

func (g *gated) increment(t *testing.T, req *plusonev1.IncrementRequest) error {
	_, err := incrementMessage(t.Context(), g.counterService, req)
	return err
}

func (g *gated) refusals(t testing.TB, reason string) float64 {
	return value(t, g.gate.decisions.refusals.WithLabelValues(reason))
}

func number(n int64) *int64 { return &n }

func idOf(age time.Duration) string {
	id := uuid.Must(uuid.NewV7())
	ms := time.Now().Add(-age).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id.String()
}

// What policies do not take is refused, each with its reason, and reaches no store.
func TestGate(t *testing.T) {
	t.Parallel()
	g := newGated(t, `
namespaces:
  small: {max_delta: 10}
  named: {anonymous: false}
  readonly: {increments: false}
  plain: {likes: false}
  brief: {dedupe_window: 10s}
  guarded: {guard: true}
`)
	increment := func(req *plusonev1.IncrementRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := incrementMessage(ctx, g.counterService, req); return err }
	}
	like := func(key, actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := likeMessage(ctx, g.counterService, &plusonev1.LikeRequest{Key: key, Actor: actor})
			return err
		}
	}
	unlike := func(key, actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := unlikeMessage(ctx, g.counterService, &plusonev1.UnlikeRequest{Key: key, Actor: actor})
			return err
		}
	}
	batch := func(id string, entries ...*plusonev1.BatchEntry) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := g.BatchIncrement(ctx, &plusonev1.BatchIncrementRequest{Entries: entries, RequestId: id})
			return err
		}
	}
	denied := func(reason string) failure { return failure{code: codes.PermissionDenied, reason: reason} }
	one := func(key string, delta int64) *plusonev1.BatchEntry {
		return &plusonev1.BatchEntry{Key: key, Delta: delta}
	}
	bound := func(actor string) *identity.Identity { return &identity.Identity{Name: "app", Actor: actor} }
	expired := failure{code: codes.FailedPrecondition, reason: reasonRequestIDExpired}
	invalid := func(fields ...string) failure {
		return failure{code: codes.InvalidArgument, reason: reasonInvalidRequest, fields: fields}
	}
	for name, test := range map[string]struct {
		call func(context.Context) error
		who  *identity.Identity
		want failure // none lets it in
	}{
		"delta":       {call: increment(&plusonev1.IncrementRequest{Key: "small/1", Delta: number(10)})},
		"large delta": {call: increment(&plusonev1.IncrementRequest{Key: "small/1", Delta: number(-11)}), want: invalid("delta")},
		"other delta": {call: increment(&plusonev1.IncrementRequest{Key: "large/1", Delta: number(11)})},
		"batch":       {call: batch("", one("small/1", 10), one("large/1", 11), one("small/2", -10))},
		"batch, delta": {
			call: batch("", one("large/1", 11), one("small/1", 11), one("small/2", 1), one("small/3", -11)),
			want: invalid("entries[1].delta", "entries[3].delta"),
		},
		"named":         {call: increment(&plusonev1.IncrementRequest{Key: "named/1", Actor: "a"})},
		"anonymous":     {call: increment(&plusonev1.IncrementRequest{Key: "named/1"}), want: denied(reasonAnonymousDenied)},
		"bound":         {call: increment(&plusonev1.IncrementRequest{Key: "named/1"}), who: bound("a")},
		"unbound":       {call: increment(&plusonev1.IncrementRequest{Key: "named/1"}), who: bound(""), want: denied(reasonAnonymousDenied)},
		"batch, named":  {call: batch("", one("large/1", 1), one("named/1", 1)), who: bound("a"), want: denied(reasonAnonymousDenied)},
		"increments":    {call: increment(&plusonev1.IncrementRequest{Key: "readonly/1"}), want: denied(reasonIncrementsDenied)},
		"batch, none":   {call: batch("", one("readonly/1", 1)), want: denied(reasonIncrementsDenied)},
		"like":          {call: like("readonly/1", "a")},
		"likes":         {call: like("plain/1", "a"), want: denied(reasonLikesDenied)},
		"unlikes":       {call: unlike("plain/1", "a"), want: denied(reasonLikesDenied)},
		"young id":      {call: increment(&plusonev1.IncrementRequest{Key: "brief/1", RequestId: idOf(5 * time.Second)})},
		"old id":        {call: increment(&plusonev1.IncrementRequest{Key: "brief/1", RequestId: idOf(11 * time.Second)}), want: expired},
		"other old id":  {call: increment(&plusonev1.IncrementRequest{Key: "other/1", RequestId: idOf(11 * time.Second)})},
		"opaque id":     {call: increment(&plusonev1.IncrementRequest{Key: "brief/1", RequestId: "opaque"})},
		"batch, old id": {call: batch(idOf(11*time.Second), one("other/1", 1), one("brief/1", 1)), want: expired},
		"denied":        {call: increment(&plusonev1.IncrementRequest{Key: "other/1", Actor: "spammer"}), want: denied(reasonActorBlocked)},
		"denied like":   {call: like("other/1", "spammer"), want: denied(reasonActorBlocked)},
		"denied unlike": {call: unlike("other/1", "spammer")},
		"denied, bound": {call: increment(&plusonev1.IncrementRequest{Key: "other/1"}), who: bound("spammer"), want: denied(reasonActorBlocked)},
		"denied batch":  {call: batch("", one("other/1", 1)), who: bound("spammer"), want: denied(reasonActorBlocked)},
		"guard":         {call: increment(&plusonev1.IncrementRequest{Key: "guarded/1", Actor: "a"})},
		"guard refuses": {call: like("guarded/1", "bot"), want: denied(reasonGuardDenied)},
		"guard of none": {call: increment(&plusonev1.IncrementRequest{Key: "guarded/1"}), want: denied(reasonAnonymousDenied)},
		"guard, batch":  {call: batch("", one("guarded/1", 1)), want: denied(reasonAnonymousDenied)},
		"guard is down": {call: unlike("guarded/1", "unknown"), want: failure{code: codes.Unavailable, reason: reasonGuardUnavailable, retry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if test.who != nil {
				ctx = identity.NewContext(ctx, test.who)
			}
			before := len(g.store.changes)
			err := test.call(ctx)
			if after := len(g.store.changes); after-before != 0 && err != nil || after-before != 1 && err == nil {
				t.Errorf("%d changes reached the store", after-before)
			}
			if test.want.reason != "" {
				wantFailure(t, err, test.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	for reason, n := range map[string]float64{
		reasonAnonymousDenied: 5, reasonActorBlocked: 4, reasonGuardDenied: 1, reasonGuardUnavailable: 1, reasonRequestIDExpired: 2,
		reasonIncrementsDenied: 2, reasonLikesDenied: 2, reasonRateLimited: 0,
	} {
		if got := g.refusals(t, reason); got != n {
			t.Errorf("%s was counted %v times, want %v", reason, got, n)
		}
	}
}

// The guard is told who acts where, and what the caller hands on; its reason reaches the caller.
func TestGateAsksGuard(t *testing.T) {
	t.Parallel()
	g := newGated(t, "namespaces: {guarded: {guard: true}}")
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(guard.TokenHeader, "captcha"))
	ctx = identity.NewContext(ctx, &identity.Identity{Name: "web"})
	_, err := incrementMessage(ctx, g.counterService, &plusonev1.IncrementRequest{Key: "guarded/1", Actor: "bot"})
	if info := errorInfo(t, err); info.Metadata["reason"] != "TOO_YOUNG" {
		t.Errorf("%v: %v", err, info)
	}
	want := guard.Question{Method: "Increment", Caller: "web", Actor: "bot", Namespace: "guarded", Token: "captcha"}
	if len(g.guard.asked) != 1 || g.guard.asked[0] != want {
		t.Errorf("asked %+v, want %+v", g.guard.asked, want)
	}
	if err := g.increment(t, &plusonev1.IncrementRequest{Key: "open/1", Actor: "bot"}); err != nil || len(g.guard.asked) != 1 {
		t.Errorf("where no guard is asked for: %v, asked %d times", err, len(g.guard.asked))
	}
	// A policy that asks for a guard that is not there lets nothing in.
	g.gate.guard = nil
	err = g.increment(t, &plusonev1.IncrementRequest{Key: "guarded/1", Actor: "a"})
	wantFailure(t, err, failure{code: codes.Unavailable, reason: reasonGuardUnavailable, retry: true})
}

func errorInfo(t *testing.T, err error) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	t.Fatalf("%v has no ErrorInfo", err)
	return nil
}

func rateLimitedFor(t *testing.T, err error, by string) time.Duration {
	t.Helper()
	wantFailure(t, err, failure{code: codes.ResourceExhausted, reason: reasonRateLimited, retry: true})
	if info := errorInfo(t, err); info.Metadata["limit"] != by {
		t.Errorf("the limit is %v, want %s", info.Metadata, by)
	}
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			return retry.RetryDelay.AsDuration()
		}
	}
	return 0
}

// Limits hold for whom they are of, tell when a token comes, and let go what they refused before.
func TestGateLimits(t *testing.T) {
	t.Parallel()
	g := newGated(t, `
default: {limits: {caller: 20/1h}}
namespaces:
  views: {limits: {actor_key: 1/1h, actor: 3/1h}}
  likes: {limits: {actor: 2/1h, caller: none}}
`)
	view := func(actor string, post int) error {
		return g.increment(t, &plusonev1.IncrementRequest{Key: fmt.Sprint("views/", post), Actor: actor})
	}
	for post := range 3 {
		if err := view("a", post); err != nil {
			t.Fatal(err)
		}
	}
	if wait := rateLimitedFor(t, view("a", 0), "actor_key"); wait < 59*time.Minute || wait > time.Hour {
		t.Errorf("the next token comes in %v", wait)
	}
	if wait := rateLimitedFor(t, view("a", 7), "actor"); wait < 19*time.Minute || wait > 20*time.Minute {
		t.Errorf("the next token comes in %v", wait)
	}
	if err := view("b", 0); err != nil {
		t.Errorf("another actor: %v", err)
	}
	for range 2 {
		if _, err := likeMessage(t.Context(), g.counterService, &plusonev1.LikeRequest{Key: "likes/1", Actor: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := unlikeMessage(t.Context(), g.counterService, &plusonev1.UnlikeRequest{Key: "likes/1", Actor: "a"})
	rateLimitedFor(t, err, "actor")

	// Who is denied uses up nobody's tokens, and neither did the calls that were refused: of the caller's 20, 4 are gone.
	for range 30 {
		wantFailure(t, view("spammer", 1), failure{code: codes.PermissionDenied, reason: reasonActorBlocked})
	}
	batch := func(entries ...*plusonev1.BatchEntry) error {
		_, err := g.BatchIncrement(t.Context(), &plusonev1.BatchIncrementRequest{Entries: entries})
		return err
	}
	one := func(key string) *plusonev1.BatchEntry { return &plusonev1.BatchEntry{Key: key, Delta: 1} }
	fifteen := make([]*plusonev1.BatchEntry, 15)
	for i := range fifteen {
		fifteen[i] = one([]string{"views/1", "x/1", "x/2"}[i%3])
	}
	if err := batch(fifteen...); err != nil {
		t.Errorf("15 of 16 tokens: %v", err)
	}
	rateLimitedFor(t, batch(one("views/1"), one("other/1")), "caller")
	if err := batch(one("likes/1"), one("likes/2"), one("views/1")); err != nil {
		t.Errorf("the last token: %v", err)
	}
	rateLimitedFor(t, g.increment(t, &plusonev1.IncrementRequest{Key: "other/1"}), "caller")
	// Another caller has tokens of its own, and one that is bound to an actor has his limits too.
	app := identity.NewContext(t.Context(), &identity.Identity{Name: "app", Actor: "c"})
	for i := range 4 {
		_, err := g.BatchIncrement(app, &plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{one("views/1")}})
		if i < 3 && err != nil {
			t.Error(err)
		} else if i == 3 {
			rateLimitedFor(t, err, "actor")
		}
	}
	// A policy that changes is in force for the next call.
	g.policies.set(t, "default: {}")
	if err := g.increment(t, &plusonev1.IncrementRequest{Key: "other/1"}); err != nil {
		t.Error(err)
	}
	allowed, refused := value(t, g.gate.decisions.allowed[limit.Caller]), value(t, g.gate.decisions.exhausted[limit.Caller])
	if allowed != 9 || refused != 2 {
		t.Errorf("%v allowed and %v refused by the caller's limit", allowed, refused)
	}
}

// failingLimiter cannot tell.
type failingLimiter struct{ err error }

func (l failingLimiter) Take(context.Context, []limit.Want) (limit.Verdict, error) {
	return limit.Verdict{}, l.err
}

// A limiter that cannot tell lets nothing in, and says what a store would.
func TestGateLimiterFails(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want failure
	}{
		{fmt.Errorf("%w: %w", counter.ErrUnavailable, errDriver), failure{code: codes.Unavailable, reason: reasonStoreUnavailable, retry: true}},
		{counter.ErrOverloaded, failure{code: codes.ResourceExhausted, reason: reasonOverloaded, retry: true}},
		{counter.ErrFull, failure{code: codes.ResourceExhausted, reason: reasonStoreFull, retry: true}},
		{context.DeadlineExceeded, failure{code: codes.Unavailable, reason: reasonStoreUnavailable, retry: true}},
		{errDriver, failure{code: codes.Internal, reason: reasonInternal}},
	} {
		g := newGated(t, "default: {limits: {caller: 1/1s}}")
		g.gate.limiter = failingLimiter{test.err}
		err := g.increment(t, &plusonev1.IncrementRequest{Key: "a/1"})
		wantFailure(t, err, test.want)
		if len(g.store.changes) != 0 || value(t, g.gate.decisions.undetermined[limit.Caller]) != 1 {
			t.Errorf("%v: %d changes", test.err, len(g.store.changes))
		}
	}
	if _, err := New(&scriptedStore{}, &scriptedReports{}, Config{Policies: &policySet{}}); err == nil {
		t.Error("policies without a limiter are taken")
	}
}

// A policy says how often an actor counts, unless the caller does. The change stays the same whatever the policy says.
func TestGateOncePer(t *testing.T) {
	t.Parallel()
	g := newGated(t, "namespaces: {views: {once_per: 1h}}")
	request := func(oncePer time.Duration) *plusonev1.IncrementRequest {
		req := &plusonev1.IncrementRequest{Key: "views/1", Actor: "a", RequestId: "id"}
		if oncePer > 0 {
			req.OncePer = durationpb.New(oncePer)
		}
		return req
	}
	apply := func(ctx context.Context, req *plusonev1.IncrementRequest) counter.Change {
		t.Helper()
		if _, err := incrementMessage(ctx, g.counterService, req); err != nil {
			t.Fatal(err)
		}
		return g.store.lastChange(t)
	}
	implied, stated := apply(t.Context(), request(0)), apply(t.Context(), request(2*time.Hour))
	if implied.OncePer != time.Hour || stated.OncePer != 2*time.Hour {
		t.Errorf("once per %v and %v", implied.OncePer, stated.OncePer)
	}
	app := identity.NewContext(t.Context(), &identity.Identity{Name: "app", Actor: "a"})
	bound := apply(app, &plusonev1.IncrementRequest{Key: "views/1", RequestId: "id"})
	if anonymous := apply(t.Context(), &plusonev1.IncrementRequest{Key: "views/1"}); anonymous.OncePer != 0 || bound.OncePer != time.Hour {
		t.Errorf("without an actor: once per %v, for a bound identity %v", anonymous.OncePer, bound.OncePer)
	}
	if other := apply(t.Context(), &plusonev1.IncrementRequest{Key: "likes/1", Actor: "a"}); other.OncePer != 0 {
		t.Errorf("in another namespace: once per %v", other.OncePer)
	}
	g.policies.set(t, "namespaces: {views: {once_per: 24h}}")
	longer := apply(t.Context(), request(0))
	g.policies.set(t, "default: {}")
	none := apply(t.Context(), request(0))
	if longer.OncePer != 24*time.Hour || none.OncePer != 0 {
		t.Errorf("after the policy changed: once per %v and %v", longer.OncePer, none.OncePer)
	}
	var key counter.FingerprintKey
	for _, again := range []counter.Change{longer, none, bound} {
		if again.Fingerprint(&key) != implied.Fingerprint(&key) {
			t.Errorf("a retry under another policy is another change: %+v", again)
		}
	}
	if stated.Fingerprint(&key) == implied.Fingerprint(&key) {
		t.Error("another once_per is the same change")
	}
}

// Calls go on while policies change.
func TestGateRace(t *testing.T) {
	t.Parallel()
	g := newGated(t, "default: {}")
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, err := incrementMessage(context.Background(), g.counterService, &plusonev1.IncrementRequest{Key: fmt.Sprintf("views/%d", i), Actor: fmt.Sprint(n % 7)})
				if code := status.Code(err); code != codes.OK && code != codes.ResourceExhausted {
					t.Errorf("%v", err)
				}
				_, err = g.BatchIncrement(context.Background(), &plusonev1.BatchIncrementRequest{
					Entries: []*plusonev1.BatchEntry{{Key: "views/1", Delta: 1}, {Key: "likes/1", Delta: 1}},
				})
				if code := status.Code(err); code != codes.OK && code != codes.ResourceExhausted && code != codes.PermissionDenied {
					t.Errorf("%v", err)
				}
			}
		})
	}
	for range 20 {
		g.policies.set(t, "default: {limits: {actor: 5/1s, caller: 10/1s}}\nnamespaces: {likes: {anonymous: false}}")
		g.policies.set(t, "default: {once_per: 1h}\nnamespaces: {likes: {}, \"v*\": {max_delta: 5}}")
	}
	cancel()
	calls.Wait()
}

// What a gate costs: nothing if there is none, and little without limits.
func BenchmarkGate(b *testing.B) {
	ctx := identity.NewContext(b.Context(), &identity.Identity{Name: "web"})
	for name, text := range map[string]string{
		"policy": "namespaces: {views: {max_delta: 10, anonymous: false, dedupe_window: 1m, once_per: 1h}}",
		"limits": "namespaces: {views: {limits: {actor_key: 1000000/1s, actor: 1000000/1s, caller: 1000000/1s}}}",
	} {
		b.Run(name, func(b *testing.B) {
			g := newGated(b, text)
			id := counter.ParseRequestID(idOf(0))
			entries := []counter.Entry{{Key: "views/post:1", Delta: 1}}
			b.ReportAllocs()
			for b.Loop() {
				change := counter.Change{Entries: entries, RequestID: id, Actor: "user:1"}
				if err := g.gate.change(ctx, &change, methodIncrement); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
