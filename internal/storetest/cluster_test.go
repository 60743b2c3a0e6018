package storetest_test

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// TestBatchOverBrokenCluster: a batch of which one master took its part and another was down is in doubt, and
// counted once when it is repeated until it is answered.
func TestBatchOverBrokenCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3, 0, redistest.AppendFsyncAlways())
	d := newDeployment(t, cluster.Addrs...)
	store := d.store(t)
	batch := counter.Change{RequestID: counter.ParseRequestID(storetest.NewID(time.Now()))}
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = fmt.Sprint("key/", i)
		batch.Entries = append(batch.Entries, counter.Entry{Key: keys[i], Delta: 1})
	}
	warm := counter.Change{Entries: batch.Entries}
	apply(t, store, warm, counter.Applied) // connects to all masters

	cluster.Masters[1].Kill()
	if _, err := store.Apply(t.Context(), batch); !errors.Is(err, counter.ErrInDoubt) {
		t.Errorf("with a master down: %v, want %v", err, counter.ErrInDoubt)
	}
	cluster.Masters[1].Restart()
	if !testproc.Poll(30*time.Second, 10*time.Millisecond, func() bool {
		_, err := store.Apply(t.Context(), batch)
		return err == nil
	}) {
		t.Fatal("the batch is not answered after the master is back")
	}
	apply(t, store, batch, counter.Duplicate)
	for _, r := range store.Counts(t.Context(), keys) {
		if r.Err != nil || r.Value != 2 {
			t.Errorf("%s is %d, %v, want 2", r.Key, r.Value, r.Err)
		}
	}
}

// TestBatchRefusedByOneShard: a batch that one shard refuses when others have counted their parts is in doubt, and
// stays so: to tell its caller that it was refused would be to say that nothing was counted.
func TestBatchRefusedByOneShard(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3, 0, redistest.AppendFsyncAlways())
	store := newDeployment(t, cluster.Addrs...).store(t)
	batch := counter.Change{RequestID: counter.ParseRequestID(storetest.NewID(time.Now()))}
	keys := make([]string, 20)
	for i := range keys {
		keys[i] = fmt.Sprint("key/", i)
		batch.Entries = append(batch.Entries, counter.Entry{Key: keys[i], Delta: 1})
	}
	apply(t, store, counter.Change{Entries: []counter.Entry{{Key: keys[0], Delta: math.MaxInt64}}}, counter.Applied)
	for range 2 {
		if _, err := store.Apply(t.Context(), batch); !errors.Is(err, counter.ErrInDoubt) || !errors.Is(err, counter.ErrOverflow) {
			t.Fatalf("%v, want %v, and the reason", err, counter.ErrInDoubt)
		}
	}
	counted := 0
	for _, r := range store.Counts(t.Context(), keys[1:]) {
		if r.Err != nil || r.Value > 1 {
			t.Errorf("%s is %d, %v", r.Key, r.Value, r.Err)
		}
		counted += int(r.Value)
	}
	if counted == 0 {
		t.Error("nothing was counted")
	}
}
