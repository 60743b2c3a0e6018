package shard

import (
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/redistest"
)

func TestTagsAreEvenlySpaced(t *testing.T) {
	t.Parallel()
	for shards := 1; shards <= 64; shards++ {
		checkTags(t, shards)
	}
	checkTags(t, MaxShards)
}

// checkTags checks that the slot of shard i is in the i-th of equal ranges, and that gaps differ by one at most.
func checkTags(t *testing.T, shards int) {
	t.Helper()
	tags := Tags(shards)
	if len(tags) != shards {
		t.Fatalf("%d tags for %d shards", len(tags), shards)
	}
	for i, tag := range tags {
		at := int(slot(tag))
		if from, to := i*clusterSlots/shards, (i+1)*clusterSlots/shards; at < from || at >= to {
			t.Errorf("%d shards: shard %d is at slot %d, not in [%d, %d)", shards, i, at, from, to)
		}
		if i == 0 {
			continue
		}
		if gap := at - int(slot(tags[i-1])); gap < clusterSlots/shards || gap > clusterSlots/shards+1 {
			t.Errorf("%d shards: %d slots between shards %d and %d", shards, gap, i-1, i)
		}
	}
}

// TestSlotsAgreeWithRedis checks the slots of tags as Redis sees them, in the keys of a shard. A rename of a tag
// would lose the shard's data.
func TestSlotsAgreeWithRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Config("cluster-enabled", "yes"))
	agree := func(t rapid.TB, tag string) {
		t.Helper()
		key := "plusone:{" + tag + "}:meta"
		if got, want := server.Do("CLUSTER", "KEYSLOT", key), strconv.Itoa(int(slot(tag))); got != want {
			t.Fatalf("slot of %q is %s in Redis, %s here", key, got, want)
		}
	}
	for _, shards := range []int{1, 3, 8, 64} {
		for _, tag := range Tags(shards) {
			agree(t, tag)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		agree(t, rapid.StringMatching(`[^{}]{1,20}`).Draw(t, "tag"))
	})
}

// TestTagsNeverChange: the keys of every deployment are made of them, and stand where Home puts them.
func TestTagsNeverChange(t *testing.T) {
	t.Parallel()
	if got, want := Tags(8), []string{"dlj", "5j7", "130", "qsu", "ng4", "7hq", "31v", "7ys"}; !slices.Equal(got, want) {
		t.Errorf("tags of 8 shards: %q, want %q", got, want)
	}
	if got := Home("views/post:42", 8); got != 2 {
		t.Errorf("home of 8: %d, want 2", got)
	}
	if got := Home("a", 64); got != 27 {
		t.Errorf("home of 64: %d, want 27", got)
	}
}
