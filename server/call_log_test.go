package server

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// secretive calls every method with keys and actors that no log may have, and requests that break the contract in
// as many ways.
func secretive(t *testing.T, r *running) {
	t.Helper()
	ctx := t.Context()
	var many plusonev1.BatchIncrementRequest
	for i := range 2 * maxLoggedKeys {
		many.Entries = append(many.Entries, &plusonev1.BatchEntry{Key: fmt.Sprint("secret-", i), Delta: 1})
	}
	for _, suffix := range []string{"", " ", strings.Repeat("x", 300)} {
		key, actor := "secret-key"+suffix, "secret-actor"+suffix
		for _, call := range []func() error{
			func() error {
				_, err := r.client.Increment(ctx, &plusonev1.IncrementRequest{Key: key, Actor: actor, RequestId: "id-17"})
				return err
			},
			func() error { _, err := r.client.BatchIncrement(ctx, &many); return err },
			func() error { _, err := r.client.Like(ctx, &plusonev1.LikeRequest{Key: key, Actor: actor}); return err },
			func() error {
				_, err := r.client.Unlike(ctx, &plusonev1.UnlikeRequest{Key: key, Actor: actor})
				return err
			},
			func() error { _, err := r.client.Get(ctx, &plusonev1.GetRequest{Key: key}); return err },
			func() error {
				_, err := r.client.BatchGet(ctx, &plusonev1.BatchGetRequest{Keys: []string{key, key}})
				return err
			},
			func() error {
				_, err := r.client.BatchGetLikes(ctx, &plusonev1.BatchGetLikesRequest{Actor: actor, Keys: []string{key}})
				return err
			},
			func() error {
				_, err := r.reports.ListLikers(ctx, &plusonev1.ListLikersRequest{Key: key, PageToken: "secret"})
				return err
			},
			func() error {
				_, err := r.reports.ListLiked(ctx, &plusonev1.ListLikedRequest{Actor: actor, PageSize: -1})
				return err
			},
		} {
			if call() == nil {
				t.Error("a call of a store that does not work succeeded")
			}
		}
	}
}

// brokenStore fails whatever it is asked, each time as the next of its errors.
func brokenStore() *scriptedStore {
	errs := []error{errDriver, counter.ErrUnavailable, counter.ErrInDoubt, counter.ErrRequestIDReused, counter.ErrOverflow}
	n := make(chan int, 1)
	n <- 0
	next := func() error {
		i := <-n
		n <- i + 1
		return errs[i%len(errs)]
	}
	return &scriptedStore{
		apply:  func(context.Context, counter.Change) (counter.Receipt, error) { return counter.Receipt{}, next() },
		counts: func(_ context.Context, keys []string) []counter.Reading { return failAll(keys, next()) },
		likes:  func(context.Context, string, []string) ([]counter.LikeState, error) { return nil, next() },
	}
}

// Keys and actors are not in the log, whatever fails, unless its level is debug.
func TestKeysAreNotLogged(t *testing.T) {
	t.Parallel()
	r := start(t, brokenStore(), Config{})
	secretive(t, r)
	log := r.log.String()
	if strings.Contains(log, "secret") {
		t.Errorf("a key or an actor was logged:\n%s", log)
	}
	if !strings.Contains(log, "request_id=id-17") || strings.Contains(log, "level=DEBUG") {
		t.Errorf("the log has no id, or lines that nobody asked for:\n%s", log)
	}
}

// At debug level each call has a line, with a bounded number of keys and the actor. Other lines still have none.
func TestCallsAreLoggedAtDebugLevel(t *testing.T) {
	t.Parallel()
	r := startLogging(t, brokenStore(), &scriptedReports{}, Config{MaxInFlight: 10}, slog.LevelDebug)
	secretive(t, r)
	calls := 0
	for line := range strings.Lines(r.log.String()) {
		if !strings.Contains(line, "level=DEBUG") {
			if strings.Contains(line, "secret") {
				t.Errorf("another line has a key or an actor: %s", line)
			}
			continue
		}
		calls++
		if len(line) > 2000 {
			t.Errorf("a line has %d bytes", len(line))
		}
		if strings.Contains(line, "BatchIncrement") && (!strings.Contains(line, "keys_total=20") || !strings.Contains(line, "secret-9") ||
			strings.Contains(line, "secret-10")) {
			t.Errorf("a batch has other keys than its first: %s", line)
		}
	}
	if calls != 27 {
		t.Errorf("%d calls have a line", calls)
	}
	log := r.log.String()
	for _, want := range []string{"key=secret-key ", "actor=secret-actor\n", "code=InvalidArgument", "duration=", "request_id=id-17", "keys=\"[secret-key"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
}

// Lines about a call say who made it.
func TestCallerIsLogged(t *testing.T) {
	t.Parallel()
	var out safeBuffer
	log := newCallLog(slog.New(slog.NewTextHandler(&out, nil)), false, newMetrics())
	ctx := identity.NewContext(t.Context(), &identity.Identity{Name: "web", Actor: "bound"})
	log.callFailed(ctx, "/m", &plusonev1.GetRequest{Key: "k"}, time.Second, status.Error(codes.Internal, "x"))
	if line := out.String(); !strings.Contains(line, "caller=web") || strings.Contains(line, "bound") {
		t.Errorf("%s", line)
	}
}

// The name of a caller that is an actor's id is in lines at level debug alone. Others tell such callers apart, as long as
// the process lasts.
func TestPersonsAreNotLogged(t *testing.T) {
	t.Parallel()
	var out safeBuffer
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	first, second := newCallLog(logger, false, newMetrics()), newCallLog(logger, false, newMetrics())
	fail := func(log *callLog, subject string) (caller string) {
		t.Helper()
		before := len(out.String())
		ctx := identity.NewContext(t.Context(), &identity.Identity{Name: "jwt:" + subject, Actor: subject, Personal: true})
		log.callFailed(ctx, "/m", &plusonev1.GetRequest{Key: "k"}, time.Second, status.Error(codes.NotFound, "x"))
		_, caller, _ = strings.Cut(out.String()[before:], "caller=")
		caller, _, _ = strings.Cut(caller, " ")
		return caller
	}
	ann := fail(first, "user:ann")
	if !regexp.MustCompile(`^jwt:#[0-9a-f]{16}$`).MatchString(ann) || fail(first, "user:ann") != ann {
		t.Errorf("a caller is logged as %s, and as %s", ann, fail(first, "user:ann"))
	}
	if fail(first, "user:bob") == ann || fail(second, "user:ann") == ann {
		t.Errorf("another caller, or that of another process, is logged as %s as well", ann)
	}
	if text := out.String(); strings.Contains(text, "user:") {
		t.Errorf("an actor was logged:\n%s", text)
	}
	ctx := identity.NewContext(t.Context(), &identity.Identity{Name: "jwt:user:ann", Personal: true})
	first.called(ctx, "/m", &plusonev1.GetRequest{Key: "k"}, time.Second, nil)
	if !strings.Contains(out.String(), "caller=jwt:user:ann") {
		t.Errorf("at level debug the name is missing:\n%s", out.String())
	}
}
