package shard_test

import (
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/twin"
)

// TestReconnectToSlowRedis: a Redis that answers within a second is slow, and no more than that, also when its
// connections are lost: connecting takes as long as an answer does, and both together more than a second.
func TestReconnectToSlowRedis(t *testing.T) {
	t.Parallel()
	link := netfault.Start(t, redistest.Start(t).Addr)
	store := storeOver(t, newRedis(t, newClientAt(t, link.Addr())), twin.NewLedger(realConfig.Shards), realConfig.Shards)
	apply := func() {
		t.Helper()
		r, err := store.Apply(t.Context(), counter.Change{
			Entries:   []counter.Entry{{Key: "k", Delta: 1}},
			RequestID: counter.ParseRequestID(storetest.NewID(time.Now())),
		})
		must(t, err)
		equal(t, "outcome", r.Outcome, counter.Applied)
	}
	apply() // after which Redis has the script
	link.SetLatency(300 * time.Millisecond)
	link.Reset()
	apply()
	apply()
}
