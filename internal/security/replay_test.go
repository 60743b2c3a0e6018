package security_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/auth"
	"github.com/plusone-dev/plusone/internal/storetest"
)

const (
	applied   = "APPLIED"
	duplicate = "DUPLICATE"
	expired   = "FailedPrecondition REQUEST_ID_EXPIRED"
	reused    = "AlreadyExists REQUEST_ID_REUSED"
)

// thievery is a site whose callers send what others have sent.
type thievery struct {
	*site
	shop, thief, admin string // tokens
	conns              []plusonev1.CounterServiceClient
}

// replayDedupe is how long ids are remembered.
const replayDedupe = 30 * time.Second

func newThievery(t *testing.T, mode string) *thievery {
	t.Helper()
	s := &thievery{site: newSite(t)}
	modes[mode](t, s.site)
	rights := []string{"read", "write"}
	s.shop = s.add(auth.Caller{Name: "shop", Scopes: rights, Namespaces: []string{"orders"}})
	s.thief = s.add(auth.Caller{Name: "thief", Scopes: rights, Namespaces: []string{"thieves"}})
	s.admin = s.add(auth.Caller{Name: "admin", Scopes: []string{"admin"}, Namespaces: []string{"*"}})
	s.start("--dedupe-window=" + replayDedupe.String())
	s.connect(t)
	return s
}

// connect makes connections to the server as it is now.
func (s *thievery) connect(t *testing.T) {
	t.Helper()
	s.conns = nil
	for range 8 {
		s.conns = append(s.conns, s.counters(s.tls()))
	}
}

func (s *thievery) admins(t *testing.T) plusonev1.AdminServiceClient {
	t.Helper()
	return plusonev1.NewAdminServiceClient(s.dial(tlsOf(s.site)))
}

// change is what a caller is told of a change.
func change(ctx context.Context, c plusonev1.CounterServiceClient, key, id string, delta int64) string {
	resp, err := c.Increment(ctx, &plusonev1.IncrementRequest{Key: key, RequestId: id, Delta: &delta})
	if err != nil {
		return reasonOf(err)
	}
	return strings.TrimPrefix(resp.Outcome.String(), "OUTCOME_")
}

func (s *thievery) wantChange(t *testing.T, token, key, id string, delta int64, want string) {
	t.Helper()
	if got := change(bearer(t, token), s.conns[0], key, id, delta); got != want {
		t.Errorf("%+d to %s under %q: %s, want %s", delta, key, id, got, want)
	}
}

func (s *thievery) wantCount(t *testing.T, token, key string, want int64) {
	t.Helper()
	resp, err := s.conns[0].Get(bearer(t, token), &plusonev1.GetRequest{Key: key, MaxAge: durationpb.New(0)})
	must(t, err)
	if got := resp.Count.Count; got != want {
		t.Errorf("%s counts %d, want %d", key, got, want)
	}
}

// storm sends a change so many times at once, over all connections, and returns how often each answer came.
func (s *thievery) storm(t *testing.T, times int, key, id string) map[string]int {
	t.Helper()
	answers := make([]string, times)
	ctx := bearer(t, s.shop)
	var group sync.WaitGroup
	for i := range answers {
		group.Go(func() { answers[i] = change(ctx, s.conns[i%len(s.conns)], key, id, 5) })
	}
	group.Wait()
	told := map[string]int{}
	for _, answer := range answers {
		told[answer]++
	}
	return told
}

// A request that was overheard counts once, however often, by how many connections and after whatever crash it is sent again.
func TestReplay(t *testing.T) {
	t.Parallel()
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newThievery(t, mode)
			const key, raced = "orders/replayed", "orders/raced"
			id, opaque := storetest.NewID(time.Now()), "order-41"
			s.wantChange(t, s.shop, key, id, 5, applied)
			s.wantChange(t, s.shop, key, opaque, 5, applied)
			late := storetest.NewID(time.Now().Add(time.Second - replayDedupe))
			s.wantChange(t, s.shop, key, late, 5, applied)
			for _, id := range []string{id, opaque} {
				if told := s.storm(t, 200, key, id); told[duplicate] != 200 {
					t.Errorf("replays of %q: %v", id, told)
				}
			}
			if told := s.storm(t, 200, raced, storetest.NewID(time.Now())); told[applied] != 1 || told[duplicate] != 199 {
				t.Errorf("200 at once: %v", told)
			}
			s.wantReused(t, key, id)
			s.wantCount(t, s.shop, key, 15)

			// Ids that are too old, or not from now.
			eventually(t, "an id that was counted is too old", func() bool {
				got := change(bearer(t, s.shop), s.conns[0], key, late, 5)
				if got != duplicate && got != expired {
					t.Fatalf("near the end of the dedupe window: %s", got)
				}
				return got == expired
			})
			s.wantChange(t, s.shop, key, storetest.NewID(time.Now().Add(-time.Hour)), 5, expired)
			s.wantChange(t, s.shop, key, storetest.NewID(time.Now().Add(time.Hour)), 5, "InvalidArgument REQUEST_ID_EARLY")
			early := storetest.NewID(time.Now().Add(20 * time.Second))
			s.wantChange(t, s.shop, key, early, 5, applied)

			s.Kill()
			s.Spawn()
			s.WaitReady()
			s.connect(t)
			for _, id := range []string{id, opaque, early} {
				if told := s.storm(t, 20, key, id); told[duplicate] != 20 {
					t.Errorf("replays of %q after a crash: %v", id, told)
				}
			}
			s.wantChange(t, s.shop, key, late, 5, expired)
			s.wantReused(t, key, id)
			s.wantCount(t, s.shop, key, 20)
			s.wantCount(t, s.shop, raced, 5)
		})
	}
}

// wantReused sends other changes of the key by an id that was used.
func (s *thievery) wantReused(t *testing.T, key, id string) {
	t.Helper()
	ctx, c := bearer(t, s.shop), s.conns[1]
	s.wantChange(t, s.shop, key, id, 6, reused)
	s.wantChange(t, s.shop, key, id, -5, reused)
	delta := int64(5)
	_, actor := c.Increment(ctx, &plusonev1.IncrementRequest{Key: key, RequestId: id, Delta: &delta, Actor: "user:7"})
	_, like := c.Like(ctx, &plusonev1.LikeRequest{Key: key, RequestId: id, Actor: "user:7"})
	_, batch := c.BatchIncrement(ctx, &plusonev1.BatchIncrementRequest{RequestId: id, Entries: []*plusonev1.BatchEntry{
		{Key: key, Delta: 5}, {Key: key + "/2", Delta: 5},
	}})
	for what, err := range map[string]error{"with an actor": actor, "as a like": like, "in a batch": batch} {
		if got := reasonOf(err); got != reused {
			t.Errorf("the id again, %s: %s, want %s", what, got, reused)
		}
	}
}

// Whoever knows an id of another tenant's, or guesses it first, may have that tenant's change refused, which he is told, and
// can have nothing counted for him, or taken for counted.
func TestReplayByAnotherTenant(t *testing.T) {
	t.Parallel()
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newThievery(t, mode)
			const key = "orders/post:42"
			id := storetest.NewID(time.Now())
			s.wantChange(t, s.shop, key, id, 1, applied)
			s.wantChange(t, s.thief, key, id, 1, "PermissionDenied NAMESPACE_DENIED")
			count := int64(1)
			for _, stolen := range []string{"thieves/1", "thieves/2", "thieves/3", "thieves/4", "thieves/5", "thieves/6"} {
				want := map[bool]string{true: applied, false: reused}[mode == "sharded"]
				if got := change(bearer(t, s.thief), s.conns[1], stolen, id, 1); got != want && got != reused {
					t.Errorf("the id in another namespace: %s", got)
				}
				// Guessed before it is used.
				guessed := "order-" + stolen
				if got := change(bearer(t, s.thief), s.conns[1], stolen, guessed, 1); got != applied {
					t.Errorf("a guess: %s", got)
				}
				switch got := change(bearer(t, s.shop), s.conns[0], key, guessed, 1); got {
				case want:
					count += map[string]int64{applied: 1}[got]
				case reused: // some of the keys are of one shard
				default:
					t.Errorf("an id that was guessed: %s", got)
				}
			}
			// xxHash, which has no key, is the same for these two changes, so whoever knows what will be sent under an id could
			// have it taken for sent already.
			const twin, twinDelta = "thieves/06e40583", -896879503620
			s.wantChange(t, s.thief, twin, "order-42", twinDelta, applied)
			s.wantChange(t, s.shop, key, "order-42", 1, reused)
			s.wantChange(t, s.shop, key, "order-42/again", 1, applied)
			s.wantCount(t, s.shop, key, count+1)
		})
	}
}

// What an administrator did is not done again.
func TestReplayOfAdmin(t *testing.T) {
	t.Parallel()
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newThievery(t, mode)
			const key, gone = "orders/imported", "orders/deleted"
			chunk := &plusonev1.ImportRequest{
				RequestId: storetest.NewID(time.Now()), Totals: []*plusonev1.ImportTotal{{Key: key, Delta: 100}},
				Likes: []*plusonev1.ImportLike{{Key: key, Actor: "user:7"}},
			}
			imported := func(token string, chunk *plusonev1.ImportRequest, want string) {
				t.Helper()
				resp, err := s.admins(t).Import(bearer(t, token), chunk)
				got := reasonOf(err)
				if err == nil {
					got = strings.TrimPrefix(resp.Outcome.String(), "OUTCOME_")
				}
				if got != want {
					t.Errorf("a chunk: %s, want %s", got, want)
				}
			}
			imported(s.admin, chunk, applied)
			s.wantChange(t, s.shop, gone, "", 3, applied)
			id := storetest.NewID(time.Now())
			deleted := func(token, key string, repeated bool, want string) {
				t.Helper()
				resp, err := s.admins(t).Delete(bearer(t, token), &plusonev1.DeleteRequest{Key: key, RequestId: id})
				if got := reasonOf(err); got != want || err == nil && (!resp.Done || resp.Duplicate != repeated) {
					t.Errorf("a Delete: %s, %v, want %s", got, resp, want)
				}
			}
			deleted(s.admin, gone, false, "OK")
			s.wantChange(t, s.shop, gone, "", 4, applied)
			_, err := s.conns[0].Unlike(bearer(t, s.shop), &plusonev1.UnlikeRequest{Key: key, Actor: "user:7"})
			must(t, err)

			replay := func() {
				t.Helper()
				var group sync.WaitGroup
				for range 8 {
					group.Go(func() { imported(s.admin, chunk, duplicate) })
					group.Go(func() { deleted(s.admin, gone, true, "OK") })
				}
				group.Wait()
				other := proto.CloneOf(chunk)
				other.Totals[0].Delta++
				imported(s.admin, other, reused)
				for _, token := range []string{s.shop, s.thief} {
					imported(token, chunk, "PermissionDenied MISSING_SCOPE")
					deleted(token, gone, false, "PermissionDenied MISSING_SCOPE")
				}
				s.wantCount(t, s.shop, key, 100)
				s.wantCount(t, s.shop, gone, 4)
			}
			replay()
			s.Kill()
			s.Spawn()
			s.WaitReady()
			s.connect(t)
			replay()
		})
	}
}
