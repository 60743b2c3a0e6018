package main_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// A server that is killed in the middle of an import, a Delete and a ForgetActor goes on with them when they are
// repeated, as the client does, also where answers were lost; what comes afterwards stays.
func TestKillWhileAdministrating(t *testing.T) {
	t.Parallel()
	for _, m := range modes[:3] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, _ := m.deploy(t)
			s := startAt(t, args...)
			c := plusonetest.Dial(t, []*plusonetest.Instance{s}, losesAnswers())
			ctx := context.Background()
			const key, actor, likes = "posts/1", "users/forgotten", 12_000
			items := func(yield func(client.ImportItem) bool) {
				for i := range likes {
					item := client.ImportItem{Key: key, Actor: fmt.Sprint("actor-", i)}
					if i%200 == 0 && !yield(client.ImportItem{Key: key, Delta: 10}) ||
						i%200 == 1 && !yield(client.ImportItem{Key: fmt.Sprint("other/", i), Actor: actor}) || !yield(item) {
						return
					}
				}
			}
			// killed kills the server when a task has begun.
			killed := func(what string, task func() error, begun func() bool) {
				t.Helper()
				done := make(chan error, 1)
				go func() { done <- task() }()
				eventually(t, what+" begins", begun)
				s.Restart()
				if err := <-done; err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			killed("import", func() error { return c.Import(ctx, "once", items, 0, nil) }, func() bool { return count(t, c, key) > 100 })
			if got, want := count(t, c, key), int64(likes+10*likes/200); got != want {
				t.Fatalf("count is %d after the import, want %d", got, want)
			}
			killed("delete", func() error { _, err := c.DeleteCounter(ctx, key, ""); return err }, func() bool { return count(t, c, key) < likes })
			if got := count(t, c, key); got != 0 {
				t.Errorf("count is %d after the deletion", got)
			}
			killed("forget", func() error { _, err := c.ForgetActor(ctx, actor); return err }, func() bool { return count(t, c, "other/1") == 0 })
			for i := 1; i < likes; i += 200 {
				if got := count(t, c, fmt.Sprint("other/", i)); got != 0 {
					t.Errorf("other/%d is %d", i, got)
				}
			}
			_, err := c.Like(ctx, key, actor)
			must(t, err)
			if got := count(t, c, key); got != 1 {
				t.Errorf("count is %d after a like", got)
			}
			audit(t, args)
		})
	}
}

// Servers that are killed while a counter is deleted, and an actor forgotten, take no more and no less than that, also if the
// counter is changed and the actor likes all the while. (The fault suite has it in sharded mode.)
func TestKillWhileAdministratingUnderLoad(t *testing.T) {
	t.Parallel()
	for _, m := range modes[:2] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, _ := m.deploy(t)
			s := startAt(t, args...)
			c := dial(t, s)
			ctx := context.Background()
			const key, actor, callers, likers = "posts/1", "users/busy", 4, 300
			for i := range likers {
				_, err := c.Like(ctx, key, fmt.Sprint("actor-", i))
				must(t, err)
			}
			counting := startLoad(t, c, callers, key)
			var liking sync.WaitGroup
			var ended atomic.Bool
			liking.Go(func() {
				for i := 0; !ended.Load(); i++ {
					if _, err := c.Like(ctx, fmt.Sprint("other/", i%50), actor); err != nil {
						t.Errorf("a like under load: %v", err)
						return
					}
				}
			})
			counting.progress(100)
			before := counting.acked[0].Load()
			var admins sync.WaitGroup
			admins.Go(func() {
				if _, err := c.DeleteCounter(ctx, key, ""); err != nil {
					t.Errorf("Delete: %v", err)
				}
			})
			admins.Go(func() {
				if _, err := c.ForgetActor(ctx, actor); err != nil {
					t.Errorf("ForgetActor: %v", err)
				}
			})
			for range 3 {
				counting.progress(20)
				s.Restart()
			}
			admins.Wait()
			after := counting.acked[0].Load()
			counting.progress(50)
			ended.Store(true)
			liking.Wait()
			counting.end()
			least, most := counting.acked[0].Load()-after-callers, counting.acked[0].Load()-before
			if got := count(t, c, key); got < least || got > most {
				t.Errorf("count is %d, and %d to %d came after the Delete", got, least, most)
			}
			_, err := c.ForgetActor(ctx, actor)
			must(t, err)
			for i := range 50 {
				if got := count(t, c, fmt.Sprint("other/", i)); got != 0 {
					t.Errorf("other/%d is %d", i, got)
				}
			}
			audit(t, args)
		})
	}
}
