package shard_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// TestWaitReplicas: what is acknowledged is on the replica, be it a change or the repeat of one; while the
// replica does not answer, changes are in doubt.
func TestWaitReplicas(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t, redistest.Config("repl-diskless-sync-delay", "0"))
	replica := redistest.Start(t)
	host, port, err := net.SplitHostPort(master.Addr)
	must(t, err)
	replica.Do("REPLICAOF", host, port)
	client := newClient(t, master)
	eventually(t, "replica", func() bool {
		n, err := command(t, client, "WAIT", "1", "10").AsInt64()
		return err == nil && n == 1
	})
	scripts, err := shard.NewRedis(client, shard.RedisConfig{
		Shards: 1, Window: time.Hour, Dedupe: time.Minute, WaitReplicas: 1, WaitTimeout: 500 * time.Millisecond, MaxSpread: 1,
	})
	must(t, err)
	store := storeOver(t, scripts, twin.NewLedger(1), 1)

	pending := func() string {
		prefix := "plusone:{" + shard.Tags(1)[0] + "}:"
		return replica.Do("HGET", prefix+"w:"+replica.Do("LINDEX", prefix+"windows", "-1"), "k")
	}
	change := func() counter.Change {
		return counter.Change{
			Entries:   []counter.Entry{{Key: "k", Delta: 1}},
			RequestID: counter.ParseRequestID(storetest.NewID(time.Now())),
		}
	}
	apply := func(c counter.Change, want counter.Outcome) {
		t.Helper()
		r, err := store.Apply(t.Context(), c)
		must(t, err)
		equal(t, "outcome", r.Outcome, want)
	}
	apply(change(), counter.Applied)
	equal(t, "on the replica", pending(), "1")

	// What is counted along with a like is not said before the replica has the like.
	value(t, store, "k")
	for _, actor := range []string{"al", "bo"} {
		like := counter.Change{Entries: []counter.Entry{{Key: "k"}}, Actor: actor, Like: counter.SetLiked, WantCount: true}
		r, err := store.Apply(t.Context(), like)
		must(t, err)
		equal(t, "a count without a wait", r.Count, nil)
	}
	equal(t, "on the replica", pending(), "3")

	replica.Stop()
	doubtful := change()
	if _, err := store.Apply(t.Context(), doubtful); !errors.Is(err, counter.ErrInDoubt) {
		t.Errorf("without the replica: %v, want %v", err, counter.ErrInDoubt)
	}
	if _, err := store.Apply(t.Context(), doubtful); !errors.Is(err, counter.ErrInDoubt) {
		t.Errorf("repeated without the replica: %v, want %v", err, counter.ErrInDoubt)
	}
	replica.Cont()
	eventually(t, "replica is back", func() bool {
		_, err := store.Apply(t.Context(), doubtful)
		return err == nil
	})
	apply(doubtful, counter.Duplicate)
	equal(t, "on the replica", pending(), "4")
}
