package flush_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/shard"
)

// scriptedLedger answers commits as the test says: each takes an error from the script, in turn, and succeeds
// when there is none left.
type scriptedLedger struct {
	mu      sync.Mutex
	script  []error
	gated   bool
	gate    chan struct{} // if not nil, every call waits until it is closed; made in the bubble if gated
	verdict flush.Verdict
	groups  []string   // keys of each group, joined
	reads   [][]string // keys of each read
	prunes  []int      // what PruneClaims returns, in turn
	pruned  atomic.Int64
}

func (l *scriptedLedger) wait(ctx context.Context) error {
	if l.gate == nil {
		return nil
	}
	select {
	case <-l.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *scriptedLedger) Commit(ctx context.Context, changes []counter.Change) ([]flush.Verdict, time.Time, error) {
	var keys []string
	for _, c := range changes {
		keys = append(keys, c.Entries[0].Key)
	}
	l.mu.Lock()
	l.groups = append(l.groups, strings.Join(keys, " "))
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", counter.ErrInDoubt, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.script) > 0 {
		err := l.script[0]
		l.script = l.script[1:]
		if err != nil {
			return nil, time.Time{}, err
		}
	}
	verdict := l.verdict
	if verdict == (flush.Verdict{}) {
		verdict.Outcome = counter.Applied
	}
	return slices.Repeat([]flush.Verdict{verdict}, len(changes)), time.Now(), nil
}

func (l *scriptedLedger) Counts(ctx context.Context, keys []string) ([]counter.Count, error) {
	l.reads = append(l.reads, slices.Clone(keys))
	if err := l.wait(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
	}
	counts := make([]counter.Count, len(keys))
	for i, key := range keys {
		counts[i] = counter.Count{Key: key, Value: int64(len(key))}
	}
	return counts, nil
}

// Likes says that an actor likes the keys that begin with its name.
func (l *scriptedLedger) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	var keys []string
	var likes shard.LedgerLikes
	for _, pair := range pairs {
		keys = append(keys, pair.Key)
		likes.States = append(likes.States, counter.LikeState{Liked: strings.HasPrefix(pair.Key, pair.Actor)})
	}
	l.mu.Lock()
	l.reads = append(l.reads, keys)
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return shard.LedgerLikes{}, fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
	}
	return likes, nil
}

func (l *scriptedLedger) PruneClaims(context.Context, int) (int, error) {
	l.pruned.Add(1)
	if len(l.prunes) == 0 {
		return 0, nil
	}
	n := l.prunes[0]
	l.prunes = l.prunes[1:]
	return n, nil
}

// withDirect runs fn with a Direct on a scripted ledger, in a bubble of its own time.
func withDirect(t *testing.T, ledger *scriptedLedger, cfg flush.DirectConfig, fn func(t *testing.T, d *flush.Direct)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if ledger.gated {
			ledger.gate = make(chan struct{})
		}
		cfg.Logger = slog.New(slog.DiscardHandler)
		d, err := flush.NewDirect(ledger, cfg)
		if err != nil {
			t.Fatal(err)
		}
		fn(t, d)
		if err := d.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// later calls Apply on a goroutine; its answer is there once the channel is closed.
type later struct {
	done    chan struct{}
	receipt counter.Receipt
	err     error
}

func applyLater(ctx context.Context, d *flush.Direct, change counter.Change) *later {
	l := &later{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.receipt, l.err = d.Apply(ctx, change)
	}()
	synctest.Wait() // it is in the queue
	return l
}

func TestDirectGroupsChanges(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true}
	withDirect(t, ledger, flush.DirectConfig{MaxGroup: 3}, func(t *testing.T, d *flush.Direct) {
		var answers []*later
		for _, key := range []string{"a", "b", "c", "d", "e"} {
			answers = append(answers, applyLater(t.Context(), d, ledgertest.Add(key, 1)))
		}
		close(ledger.gate)
		for _, a := range answers {
			if <-a.done; a.err != nil || a.receipt.Outcome != counter.Applied || a.receipt.AsOf.IsZero() {
				t.Errorf("%+v, %v", a.receipt, a.err)
			}
		}
		if want := []string{"a", "b c d", "e"}; !slices.Equal(ledger.groups, want) {
			t.Errorf("groups %q, want %q", ledger.groups, want)
		}
	})
}

func TestDirectCallerLeaves(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true}
	withDirect(t, ledger, flush.DirectConfig{}, func(t *testing.T, d *flush.Direct) {
		cause := errors.New("the client hung up")
		ctx, cancel := context.WithCancelCause(t.Context())
		taken := applyLater(ctx, d, ledgertest.Add("taken", 1))
		waiting := applyLater(ctx, d, ledgertest.Add("waiting", 1))
		stays := applyLater(t.Context(), d, ledgertest.Add("stays", 1))
		cancel(cause)
		<-taken.done
		<-waiting.done
		if !errors.Is(taken.err, counter.ErrInDoubt) || !errors.Is(taken.err, cause) {
			t.Errorf("left during the transaction: %v, want ErrInDoubt and the cause", taken.err)
		}
		if !errors.Is(waiting.err, cause) {
			t.Errorf("left before the transaction: %v, want only the cause", waiting.err)
		}
		close(ledger.gate)
		if <-stays.done; stays.err != nil {
			t.Errorf("stayed: %v", stays.err)
		}
		if _, err := d.Apply(ctx, ledgertest.Add("gone", 1)); !errors.Is(err, cause) {
			t.Errorf("was gone before: %v, want the cause", err)
		}
		if want := []string{"taken", "stays"}; !slices.Equal(ledger.groups, want) {
			t.Errorf("groups %q, want %q", ledger.groups, want)
		}
	})
}

func TestDirectRepeatsWhatIsSafe(t *testing.T) {
	t.Parallel()
	inDoubt := fmt.Errorf("commit: %w", counter.ErrInDoubt)
	unavailable := fmt.Errorf("commit: %w", counter.ErrUnavailable)
	full := fmt.Errorf("commit: %w", counter.ErrFull)
	for _, test := range []struct {
		name                string
		script              []error
		verdict             flush.Verdict
		withID, withoutID   error
		attempts, attempts2 int // with an id and without
	}{
		{"unavailable once", []error{unavailable}, flush.Verdict{}, nil, nil, 2, 2},
		{"unavailable", slices.Repeat([]error{unavailable}, 9), flush.Verdict{}, counter.ErrUnavailable, counter.ErrUnavailable, 3, 3},
		{"in doubt once", []error{inDoubt}, flush.Verdict{}, nil, counter.ErrInDoubt, 2, 1},
		{"in doubt, then unavailable", []error{inDoubt, unavailable, unavailable}, flush.Verdict{}, counter.ErrInDoubt, counter.ErrInDoubt, 3, 1},
		{"in doubt, then expired", []error{inDoubt}, flush.Verdict{Err: counter.ErrRequestIDExpired}, counter.ErrInDoubt, counter.ErrInDoubt, 2, 1},
		{"in doubt, then overflow", []error{inDoubt}, flush.Verdict{Err: counter.ErrOverflow}, counter.ErrOverflow, counter.ErrInDoubt, 2, 1},
		{"full", []error{full}, flush.Verdict{}, counter.ErrFull, counter.ErrFull, 1, 1},
	} {
		for _, id := range []counter.RequestID{ledgertest.Opaque(), {}} {
			want, attempts := test.withID, test.attempts
			if id.IsZero() {
				want, attempts = test.withoutID, test.attempts2
			}
			ledger := &scriptedLedger{script: slices.Clone(test.script), verdict: test.verdict}
			withDirect(t, ledger, flush.DirectConfig{}, func(t *testing.T, d *flush.Direct) {
				_, err := d.Apply(t.Context(), ledgertest.With(id, ledgertest.Add("k", 1)))
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", test.name, err, want)
				}
				if len(ledger.groups) != attempts {
					t.Errorf("%s, id %v: %d attempts, want %d", test.name, !id.IsZero(), len(ledger.groups), attempts)
				}
			})
		}
	}
}

func TestDirectAttemptsEnd(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true} // never answers
	withDirect(t, ledger, flush.DirectConfig{Timeout: time.Second}, func(t *testing.T, d *flush.Direct) {
		start := time.Now()
		_, err := d.Apply(t.Context(), ledgertest.Add("k", 1))
		if !errors.Is(err, counter.ErrInDoubt) || time.Since(start) != time.Second {
			t.Errorf("%v after %v, want ErrInDoubt after 1s", err, time.Since(start))
		}
		r := d.Counts(t.Context(), []string{"k"})
		if !errors.Is(r[0].Err, counter.ErrUnavailable) || r[0].Key != "k" {
			t.Errorf("read: %+v, want ErrUnavailable", r)
		}
	})
}

func TestDirectShedsLoad(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true}
	withDirect(t, ledger, flush.DirectConfig{MaxQueue: 2}, func(t *testing.T, d *flush.Direct) {
		answers := []*later{
			applyLater(t.Context(), d, ledgertest.Add("under way", 1)),
			applyLater(t.Context(), d, ledgertest.Add("waiting", 1)),
		}
		two := counter.Change{Entries: []counter.Entry{{Key: "x", Delta: 1}, {Key: "y", Delta: 1}}}
		if _, err := d.Apply(t.Context(), two); !errors.Is(err, counter.ErrOverloaded) {
			t.Errorf("beyond the queue: %v, want ErrOverloaded", err)
		}
		close(ledger.gate)
		for _, a := range answers {
			if <-a.done; a.err != nil {
				t.Error(a.err)
			}
		}
	})
}

func TestDirectCombinesReads(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true}
	withDirect(t, ledger, flush.DirectConfig{}, func(t *testing.T, d *flush.Direct) {
		var group sync.WaitGroup
		for _, keys := range [][]string{{"a"}, {"bb", "a", "bb"}, {"ccc", "a"}} {
			group.Go(func() {
				for i, r := range d.Counts(t.Context(), keys) {
					if r.Err != nil || r.Key != keys[i] || r.Value != int64(len(keys[i])) {
						t.Errorf("reading %d of %q: %+v", i, keys, r)
					}
				}
			})
			synctest.Wait()
		}
		close(ledger.gate)
		group.Wait()
		if len(ledger.reads) != 2 || !slices.Equal(ledger.reads[1], []string{"bb", "a", "ccc"}) {
			t.Errorf("reads %q", ledger.reads)
		}
		if none := d.Counts(t.Context(), nil); len(none) != 0 {
			t.Errorf("reading of no keys: %v", none)
		}
	})
}

func TestDirectCombinesLikes(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true}
	withDirect(t, ledger, flush.DirectConfig{MaxQueue: 6}, func(t *testing.T, d *flush.Direct) {
		var group sync.WaitGroup
		for _, read := range [][]string{{"ann", "ann/1"}, {"bob", "ann/1", "bob/1", "bob/1"}, {"ann", "bob/1", "ann/2"}} {
			group.Go(func() {
				states, err := d.Likes(t.Context(), read[0], read[1:])
				if err != nil || len(states) != len(read)-1 {
					t.Errorf("%q: %+v, %v", read, states, err)
					return
				}
				for i, s := range states {
					if want := strings.HasPrefix(read[i+1], read[0]); s.Liked != want {
						t.Errorf("%s likes %s: %v, want %v", read[0], read[i+1], s.Liked, want)
					}
				}
			})
			synctest.Wait()
		}
		if states, err := d.Likes(t.Context(), "ann", []string{"ann/1", "ann/2"}); !errors.Is(err, counter.ErrOverloaded) {
			t.Errorf("beyond the queue: %+v, %v, want ErrOverloaded", states, err)
		}
		close(ledger.gate)
		group.Wait()
		if len(ledger.reads) != 2 || !slices.Equal(ledger.reads[1], []string{"ann/1", "bob/1", "bob/1", "bob/1", "ann/2"}) {
			t.Errorf("reads %q", ledger.reads)
		}
		if none, err := d.Likes(t.Context(), "ann", nil); len(none) != 0 || err != nil {
			t.Errorf("likes of no keys: %v, %v", none, err)
		}
	})
}

func TestDirectLikesFail(t *testing.T) {
	t.Parallel()
	ledger := &scriptedLedger{gated: true} // never answers
	var closed *flush.Direct
	withDirect(t, ledger, flush.DirectConfig{Timeout: time.Second}, func(t *testing.T, d *flush.Direct) {
		closed = d
		start := time.Now()
		if states, err := d.Likes(t.Context(), "ann", []string{"a"}); !errors.Is(err, counter.ErrUnavailable) || states != nil || time.Since(start) != time.Second {
			t.Errorf("%v, %v after %v, want ErrUnavailable after 1s", states, err, time.Since(start))
		}
		cause := errors.New("the client hung up")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := d.Likes(ctx, "ann", []string{"a"}); !errors.Is(err, cause) {
			t.Errorf("the caller left: %v, want the cause", err)
		}
	})
	if _, err := closed.Likes(t.Context(), "ann", []string{"a"}); !errors.Is(err, counter.ErrUnavailable) {
		t.Errorf("after Close: %v, want ErrUnavailable", err)
	}
}

// TestDirectAnswersLikes: what the ledger says of a like is in its receipt.
func TestDirectAnswersLikes(t *testing.T) {
	t.Parallel()
	for _, verdict := range []flush.Verdict{{Outcome: counter.Applied, Changed: true}, {Outcome: counter.Duplicate}} {
		withDirect(t, &scriptedLedger{verdict: verdict}, flush.DirectConfig{}, func(t *testing.T, d *flush.Direct) {
			receipt, err := d.Apply(t.Context(), ledgertest.Like("k", "ann"))
			if err != nil || receipt.Outcome != verdict.Outcome || receipt.Changed != verdict.Changed || receipt.Provisional {
				t.Errorf("%+v, %v, want %+v", receipt, err, verdict)
			}
		})
	}
}

func TestDirectForgetsClaims(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	ledger := &scriptedLedger{prunes: []int{5_000, 5_000, 7, 0}}
	withDirect(t, ledger, flush.DirectConfig{PruneInterval: time.Minute, Registry: registry}, func(t *testing.T, _ *flush.Direct) {
		time.Sleep(time.Minute) // the bubble's time
		synctest.Wait()
		if n := ledger.pruned.Load(); n != 3 {
			t.Errorf("%d prunes in the first round, want 3", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := ledger.pruned.Load(); n != 4 {
			t.Errorf("%d prunes in two rounds, want 4", n)
		}
	})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "plusone_direct_pruned_claims_total" {
			if n := family.GetMetric()[0].GetCounter().GetValue(); n != 10_007 {
				t.Errorf("%v claims pruned by the metric, want 10,007", n)
			}
			return
		}
	}
	t.Error("no metric says how many claims were pruned")
}

func TestDirectClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ledger := &scriptedLedger{gate: make(chan struct{})}
		d, err := flush.NewDirect(ledger, flush.DirectConfig{Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		underWay := applyLater(t.Context(), d, ledgertest.Add("a", 1))
		waiting := applyLater(t.Context(), d, ledgertest.Add("b", 1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want DeadlineExceeded", err)
		}
		<-underWay.done
		<-waiting.done
		if underWay.err == nil || waiting.err == nil {
			t.Errorf("answers after a hard stop: %v, %v", underWay.err, waiting.err)
		}
		if err := d.Close(t.Context()); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if _, err := d.Apply(t.Context(), ledgertest.Add("c", 1)); !errors.Is(err, counter.ErrUnavailable) {
			t.Errorf("Apply after Close: %v", err)
		}
		if r := d.Counts(t.Context(), []string{"c"}); !errors.Is(r[0].Err, counter.ErrUnavailable) {
			t.Errorf("Counts after Close: %+v", r)
		}
	})
}

// TestDirectOnSQLite lets callers read their own writes while others write.
func TestDirectOnSQLite(t *testing.T) {
	t.Parallel()
	ledger := openSQLite(t, filepath.Join(t.TempDir(), "plusone.db"), flush.SQLiteOptions{})
	d, err := flush.NewDirect(ledger, flush.DirectConfig{})
	if err != nil {
		t.Fatal(err)
	}
	const callers, each = 16, 20
	var group sync.WaitGroup
	for c := range callers {
		group.Go(func() {
			key := fmt.Sprint("views/", c)
			for i := range int64(each) {
				receipt, err := d.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: key, Delta: 1}, {Key: "views/all", Delta: 1}}})
				if err != nil {
					t.Errorf("Apply: %v", err)
					return
				}
				r := d.Counts(t.Context(), []string{key, "views/all"})
				if r[0].Err != nil || r[0].Value != i+1 || r[1].Value <= i || r[0].AsOf.Before(receipt.AsOf) {
					t.Errorf("after write %d as of %v: %+v", i+1, receipt.AsOf, r)
				}
			}
		})
	}
	group.Wait()
	if r := d.Counts(t.Context(), []string{"views/all"}); r[0].Value != callers*each {
		t.Errorf("total %d, want %d", r[0].Value, callers*each)
	}
	if err := d.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
