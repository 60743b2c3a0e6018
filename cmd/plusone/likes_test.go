package main_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// losesAnswers makes a client lose one in ten answers, as a connection does that breaks behind the server's back.
func losesAnswers() client.Option {
	return client.WithDialOptions(grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any,
		conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil && rand.IntN(10) == 0 {
			return status.Error(codes.Unavailable, "the answer was lost")
		}
		return err
	}))
}

// likeModes are the modes, each with as many servers as it allows, and a threshold at which the key of a race is
// spread in the middle of it.
var likeModes = []struct {
	mode
	servers int
	args    []string
}{
	{modes[0], 1, nil},
	{modes[1], 2, nil},
	{modes[2], 2, []string{"--hot-threshold=50"}},
	{modes[3], 2, []string{"--hot-threshold=50"}},
}

// setLike likes or unlikes and returns what that adds to the number of likes.
func setLike(c *client.Client, key, actor string, like bool) (client.LikeReceipt, int64, error) {
	set, delta := c.Like, int64(1)
	if !like {
		set, delta = c.Unlike, -1
	}
	receipt, err := set(context.Background(), key, actor)
	if err != nil || !receipt.Changed {
		delta = 0
	}
	return receipt, delta, err
}

// One actor who likes and unlikes a key over 50 connections is counted once or not at all, whatever answers are lost.
func TestLikeRace(t *testing.T) {
	t.Parallel()
	const connections, calls = 50, 10_000
	const key, actor = "likes/post:1", "user:ann"
	for _, m := range likeModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, total := m.deploy(t)
			var servers []*plusonetest.Instance
			for range m.servers {
				servers = append(servers, start(t, append(args, m.args...)...))
			}
			var likes atomic.Int64 // by the answers
			var racing, reading sync.WaitGroup
			var left atomic.Int64
			left.Store(calls)
			for range connections {
				c := plusonetest.Dial(t, servers, losesAnswers())
				racing.Go(func() {
					for left.Add(-1) >= 0 {
						receipt, delta, err := setLike(c, key, actor, rand.IntN(2) == 0)
						likes.Add(delta)
						if err != nil || receipt.Provisional || !receipt.CountKnown || receipt.Count != 0 && receipt.Count != 1 {
							t.Errorf("%+v, %v", receipt, err)
							return
						}
					}
				})
			}
			reader := dial(t, servers...)
			ended := make(chan struct{})
			reading.Go(func() {
				for {
					got, err := reader.Get(context.Background(), key, client.Fresh())
					if err != nil || got.Count != got.Likes || got.Count != 0 && got.Count != 1 {
						t.Errorf("read %+v, %v", got, err)
						return
					}
					select {
					case <-ended:
						return
					default:
					}
				}
			})
			racing.Wait()
			close(ended)
			reading.Wait()

			if m.args != nil {
				knows := func(s *plusonetest.Instance) bool { // from what it has spread itself, or in a while
					_, body := s.Page("/metrics")
					return strings.Contains(body, "\nplusone_shard_spread_keys 1\n")
				}
				if !slices.ContainsFunc(servers, knows) {
					t.Error("the key was not spread")
				}
			}
			if got := count(t, reader, key); got != likes.Load() {
				t.Errorf("the count is %d, and the changes that were acknowledged make %d", got, likes.Load())
			}
			checkLikes(t, reader, key, map[string]bool{actor: likes.Load() == 1})
			_, _, err := setLike(reader, key, actor, true)
			must(t, err)
			checkLikes(t, reader, key, map[string]bool{actor: true})
			eventually(t, "the ledger has the last like", func() bool { return total(t, key) == 1 })
			raceOfLikers(t, servers, m.name == "cluster")
			audit(t, args)
		})
	}
}

// raceOfLikers has actors like a key over all servers at once. The count in an answer has its own like and all that were
// acknowledged before the call, and none that was not sent. Whoever passes its moment on reads no less, but in a cluster, where
// a count is of several moments.
func raceOfLikers(t *testing.T, servers []*plusonetest.Instance, cluster bool) {
	t.Helper()
	const likers, each, key = 20, 30, "likes/post:2"
	var sent, acknowledged atomic.Int64
	var racing sync.WaitGroup
	for i := range likers {
		c := dial(t, servers...)
		racing.Go(func() {
			for n := range each {
				least := acknowledged.Load() + 1
				sent.Add(1)
				r, err := c.Like(context.Background(), key, fmt.Sprintf("user:%d-%d", i, n))
				most := sent.Load()
				if err != nil || !r.CountKnown || r.Count < least || r.Count > most {
					t.Errorf("%+v, %v; want a count from %d to %d", r, err, least, most)
					return
				}
				acknowledged.Add(1)
				if !cluster {
					least = r.Count
				}
				later, err := c.Get(context.Background(), key, client.MinAsOf(r.AsOf))
				if err != nil || later.Stale || later.Count < least || later.AsOf.Before(r.AsOf) {
					t.Errorf("read %+v, %v, after %+v", later, err, r)
					return
				}
			}
		})
	}
	racing.Wait()
}

// checkLikes compares the count of a key, its likes and its list of likers with who likes it.
func checkLikes(t *testing.T, c *client.Client, key string, likes map[string]bool) {
	t.Helper()
	want := int64(0)
	for actor, liked := range likes {
		if liked {
			want++
		}
		got, err := c.Liked(context.Background(), actor, []string{key})
		must(t, err)
		if len(got) != 1 || got[0].Liked != liked {
			t.Errorf("%s likes %s: %+v, want %v", actor, key, got, liked)
		}
	}
	got, err := c.Get(context.Background(), key, client.Fresh())
	must(t, err)
	if got.Count != want || got.Likes != want {
		t.Errorf("%s counts %d with %d likes, want %d", key, got.Count, got.Likes, want)
	}
}

// audit runs "plusone audit" on a deployment, which must find nothing wrong.
func audit(t *testing.T, args []string) {
	t.Helper()
	line := []string{"audit"}
	for _, arg := range args {
		switch name, _, _ := strings.Cut(arg, "="); name {
		case "--data", "--postgres-url", "--redis-url", "--shards", "--window":
			line = append(line, arg)
		}
	}
	if out, code := execute(t, nil, line...); code != 0 {
		t.Errorf("plusone audit exits %d:\n%s", code, out)
	}
}

// Likes survive servers that are killed: each actor likes in the end what it was last told, and is counted once.
func TestLikesKill(t *testing.T) {
	t.Parallel()
	for _, m := range likeModes[:3] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, total := m.deploy(t)
			s := startAt(t, append(args, m.args...)...)
			keys := []string{"likes/a", "likes/b"}
			states := make([]map[string]bool, len(keys))
			for i := range states {
				states[i] = map[string]bool{}
			}
			var mu sync.Mutex
			var ended atomic.Bool
			var acked atomic.Int64
			var callers sync.WaitGroup
			c := plusonetest.Dial(t, []*plusonetest.Instance{s}, losesAnswers())
			for caller := range 8 {
				callers.Go(func() {
					for n := 0; !ended.Load(); n++ {
						k, actor, like := rand.IntN(len(keys)), fmt.Sprint("user:", caller, "-", rand.IntN(10)), rand.IntN(3) > 0
						mu.Lock()
						before := states[k][actor]
						mu.Unlock()
						receipt, _, err := setLike(c, keys[k], actor, like)
						if err != nil || receipt.Changed != (before != like) {
							t.Errorf("%v after %v: %+v, %v", like, before, receipt, err)
							return
						}
						mu.Lock()
						states[k][actor] = like
						mu.Unlock()
						acked.Add(1)
					}
				})
			}
			for range 4 {
				target := acked.Load() + 150
				eventually(t, "likes are acknowledged", func() bool { return acked.Load() >= target || t.Failed() })
				s.Restart()
			}
			ended.Store(true)
			callers.Wait()
			for k, key := range keys {
				checkLikes(t, c, key, states[k])
				want := count(t, c, key)
				eventually(t, "counter_totals agrees", func() bool { return total(t, key) == want })
			}
			s.Terminate() // of a SQLite file there is one process
			audit(t, args)
		})
	}
}

// Likes go on while Postgres is down. What was supposed of them is set right when it is back.
func TestLikesProvisional(t *testing.T) {
	t.Parallel()
	postgres := pgtest.Start(t)
	redis := redistest.Start(t, redistest.AppendFsyncAlways())
	args := shardedArgs(redis.URL(), postgres.URL)
	s := start(t, args...)
	c := dial(t, s)
	const key = "likes/outage"
	for i := range 20 {
		_, _, err := setLike(c, key, fmt.Sprint("user:", i), true)
		must(t, err)
	}
	eventually(t, "the likes are in Postgres", func() bool { return postgresTotal(t, postgres.URL, key) == 20 })
	redis.Do("FLUSHALL") // so that only Postgres knows who liked
	eventually(t, "the loss was noticed", func() bool {
		return s.Logged("redis went back in time") != nil || postgresTotal(t, postgres.URL, key) == 20
	})
	postgres.Kill()
	// Half of these are repeats, which nobody can tell now.
	for i := 10; i < 30; i++ {
		receipt, _, err := setLike(c, key, fmt.Sprint("user:", i), true)
		if err != nil || !receipt.Changed || !receipt.Provisional {
			t.Errorf("like without Postgres: %+v, %v", receipt, err)
		}
	}
	// What was set meanwhile is known.
	if receipt, _, err := setLike(c, key, "user:29", true); err != nil || receipt.Changed || receipt.Provisional {
		t.Errorf("repeated like without Postgres: %+v, %v", receipt, err)
	}
	if _, err := c.Liked(within(t, 5e9), "user:1", []string{key}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("a like that only Postgres knows: %v", err)
	}
	postgres.Restart()
	eventually(t, "the likes are set right", func() bool { return postgresTotal(t, postgres.URL, key) == 30 })
	if got := count(t, c, key); got != 30 {
		t.Errorf("count is %d, want 30", got)
	}
	audit(t, args)
}
