package ledgertest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
)

// Dedupe is the dedupe window of the ledgers under test.
const Dedupe = 5 * time.Minute

// DirectLedger is what is tested.
type DirectLedger interface {
	flush.DirectLedger
	Lists
}

// DirectInstance is a new, empty ledger that keeps its history by the hour, judges by the clock of this
// machine, and is closed by the test's cleanup.
type DirectInstance struct {
	DirectLedger
	// Other is a second handle on the same data, or the same one if there can be only one.
	Other DirectLedger
	// DB reads what is public.
	DB *sql.DB
	// AgeClaims makes all claims older than they are.
	AgeClaims func(t testing.TB, by time.Duration)
}

// ExerciseDirect checks that ledgers keep the contract of flush.DirectLedger.
func ExerciseDirect(t *testing.T, open func(t *testing.T) DirectInstance) {
	for name, test := range map[string]func(*testing.T, DirectInstance){
		"CountsInOrder":             countsInOrder,
		"AsOf":                      asOf,
		"RequestIDs":                requestIDs,
		"RequestIDsInOneGroup":      requestIDsInOneGroup,
		"KindsOfRequestID":          kindsOfRequestID,
		"RequestIDAges":             requestIDAges,
		"OncePer":                   oncePer,
		"OncePerAndRequestIDs":      oncePerAndRequestIDs,
		"RefusedChangesLeaveNone":   refusedChangesLeaveNone,
		"BatchesAreAtomic":          batchesAreAtomic,
		"ExactToTheEdge":            exactToTheEdge,
		"SumsBeyondTheEdge":         sumsBeyondTheEdge,
		"LargeGroups":               largeGroups,
		"ConcurrentHandles":         concurrentHandles,
		"PruneClaims":               pruneClaims,
		"DoneContextChangesNothing": doneContext,
		"RandomOperations":          randomOperations,
		"Likes":                     likes,
		"LikeMoments":               likeMoments,
		"LikeHistory":               likeHistory,
		"LikeRequestIDs":            likeRequestIDs,
		"LikeRequestIDsReused":      likeRequestIDsReused,
		"LikeRequestIDAges":         likeRequestIDAges,
		"LikesInOneGroup":           likesInOneGroup,
		"LikesAtTheEdge":            likesAtTheEdge,
		"LargeGroupsOfLikes":        largeGroupsOfLikes,
		"ConcurrentLikes":           concurrentLikes,
		"LikesInOppositeOrder":      likesInOppositeOrder,
		"Lists":                     directLists,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t)
			test(t, l)
			Audit(t, l.DB)
		})
	}
}

// commit fails the test on an error of the group.
func commit(t testing.TB, l flush.DirectLedger, changes ...counter.Change) []flush.Verdict {
	t.Helper()
	verdicts, _, err := l.Commit(context.Background(), changes)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if len(verdicts) != len(changes) {
		t.Fatalf("%d verdicts on %d changes", len(verdicts), len(changes))
	}
	return verdicts
}

// wantVerdicts compares verdicts with wanted outcomes, errors and whole verdicts.
func wantVerdicts(t testing.TB, got []flush.Verdict, want ...any) {
	t.Helper()
	for i, w := range want {
		switch w := w.(type) {
		case counter.Outcome:
			if got[i].Err != nil || got[i].Outcome != w {
				t.Errorf("change %d: outcome %d, error %v, want outcome %d", i, got[i].Outcome, got[i].Err, w)
			}
		case error:
			if !errors.Is(got[i].Err, w) || got[i].Outcome != 0 {
				t.Errorf("change %d: outcome %d, error %v, want error %v", i, got[i].Outcome, got[i].Err, w)
			}
		case flush.Verdict:
			if got[i] != w {
				t.Errorf("change %d: %+v, want %+v", i, got[i], w)
			}
		default:
			t.Fatalf("no verdict: %v", w)
		}
	}
}

func wantCount(t testing.TB, l flush.DirectLedger, key string, want int64) {
	t.Helper()
	counts, err := l.Counts(context.Background(), []string{key})
	if err != nil {
		t.Fatalf("Counts: %v", err)
	}
	if counts[0].Value != want {
		t.Errorf("count is %d, want %d", counts[0].Value, want)
	}
}

func countsInOrder(t *testing.T, l DirectInstance) {
	a, b, unknown := Key(), Key(), Key()
	wantVerdicts(t, commit(t, l, Add(a, 5), Add(b, -7), Add(a, 1)), counter.Applied, counter.Applied, counter.Applied)
	counts, err := l.Other.Counts(t.Context(), []string{b, unknown, a, b})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range counts {
		got = append(got, fmt.Sprint(c.Key, c.Value, c.Likes))
	}
	want := []string{fmt.Sprint(b, -7, 0), fmt.Sprint(unknown, 0, 0), fmt.Sprint(a, 6, 0), fmt.Sprint(b, -7, 0)}
	if !slices.Equal(got, want) {
		t.Errorf("counts %v, want %v", got, want)
	}
	if none, err := l.Counts(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("counts of no keys: %v, %v", none, err)
	}
}

// asOf checks that a read from before a commit never looks as if it were from after it, for every way in
// which a group is committed.
func asOf(t *testing.T, l DirectInstance) {
	key, id := Key(), V7(time.Now())
	for i, change := range []counter.Change{Add(key, 1), With(id, Add(key, 1)), With(id, Add(key, 1))} {
		before, err := l.Counts(t.Context(), []string{key})
		if err != nil {
			t.Fatal(err)
		}
		_, at, err := l.Commit(t.Context(), []counter.Change{change})
		if err != nil {
			t.Fatal(err)
		}
		if !before[0].AsOf.Before(at) {
			t.Errorf("commit %d: as of %v, the read before it %v", i, at, before[0].AsOf)
		}
		if off := time.Since(at).Abs(); off > time.Minute {
			t.Errorf("commit %d: as of is %v from now", i, off)
		}
	}
}

func requestIDs(t *testing.T, l DirectInstance) {
	for _, id := range []counter.RequestID{V7(time.Now()), Opaque()} {
		key := Key()
		wantVerdicts(t, commit(t, l, With(id, Add(key, 3))), counter.Applied)
		wantVerdicts(t, commit(t, l.Other, With(id, Add(key, 3))), counter.Duplicate)
		wantVerdicts(t, commit(t, l, With(id, Add(key, 4))), counter.ErrRequestIDReused)
		wantVerdicts(t, commit(t, l, With(id, Add(Key(), 3))), counter.ErrRequestIDReused)
		// Known, new and no ids together.
		wantVerdicts(t, commit(t, l, Add(key, 10), With(id, Add(key, 3)), With(Opaque(), Add(key, 100)), With(id, Add(key, 5))),
			counter.Applied, counter.Duplicate, counter.Applied, counter.ErrRequestIDReused)
		wantCount(t, l, key, 113)
	}
}

func requestIDsInOneGroup(t *testing.T, l DirectInstance) {
	key, id, other := Key(), V7(time.Now()), Opaque()
	wantVerdicts(t, commit(t, l, With(id, Add(key, 1)), With(other, Add(key, 10)), With(id, Add(key, 1)), With(id, Add(key, 2)), With(other, Add(key, 10))),
		counter.Applied, counter.Applied, counter.Duplicate, counter.ErrRequestIDReused, counter.Duplicate)
	wantCount(t, l, key, 11)
}

// kindsOfRequestID checks that a UUIDv7 and another id of the same bytes are two ids.
func kindsOfRequestID(t *testing.T, l DirectInstance) {
	key, id := Key(), V7(time.Now())
	same := counter.ParseRequestID(id.Bytes())
	wantVerdicts(t, commit(t, l, With(id, Add(key, 1))), counter.Applied)
	wantVerdicts(t, commit(t, l, With(same, Add(key, 1))), counter.Applied)
	wantCount(t, l, key, 2)
}

func requestIDAges(t *testing.T, l DirectInstance) {
	const slack = 10 * time.Second // for the time that the test itself takes
	key, now := Key(), time.Now()
	wantVerdicts(t, commit(t, l,
		With(V7(now.Add(-Dedupe-time.Millisecond)), Add(key, 1)),
		With(V7(now.Add(-Dedupe+slack)), Add(key, 10)),
		With(V7(now.Add(counter.MaxEarly-time.Millisecond)), Add(key, 100)),
		With(V7(now.Add(counter.MaxEarly+slack)), Add(key, 1000)),
	), counter.ErrRequestIDExpired, counter.Applied, counter.Applied, counter.ErrRequestIDEarly)
	wantVerdicts(t, commit(t, l, With(V7(now.Add(-Dedupe-time.Millisecond)), Add(key, 1))), counter.ErrRequestIDExpired)
	wantVerdicts(t, commit(t, l, With(V7(time.Now().Add(counter.MaxEarly+slack)), Add(key, 1000))), counter.ErrRequestIDEarly)
	wantCount(t, l, key, 110)
}

func oncePer(t *testing.T, l DirectInstance) {
	const per = time.Minute
	key, now := Key(), time.Now()
	at := func(age time.Duration) counter.RequestID { return V7(now.Add(-age)) }
	change := Add(key, 1)
	wantVerdicts(t, commit(t, l, Once("ann", per, With(at(0), change)), Once("ann", per, With(at(0), change)), Once("bob", per, With(at(0), change))),
		counter.Applied, counter.AlreadyCounted, counter.Applied)
	// Another period of time, length of period or key is another claim.
	wantVerdicts(t, commit(t, l, Once("ann", per, With(at(0), change)), Once("ann", per, With(at(2*per), change)), Once("ann", 7*24*time.Hour, change)),
		counter.AlreadyCounted, counter.Applied, counter.Applied)
	wantVerdicts(t, commit(t, l.Other, Once("ann", per, With(at(2*per), change)), Once("ann", 7*24*time.Hour, Add(Key(), 1)), Once("ann", 7*24*time.Hour, change)),
		counter.AlreadyCounted, counter.Applied, counter.AlreadyCounted)
	wantCount(t, l, key, 4)
}

func oncePerAndRequestIDs(t *testing.T, l DirectInstance) {
	const per = time.Hour
	key, actor := Key(), "ann"
	first, second := V7(time.Now()), V7(time.Now())
	change := Once(actor, per, Add(key, 1))
	wantVerdicts(t, commit(t, l, With(first, change)), counter.Applied)
	// The id is looked at before the actor.
	wantVerdicts(t, commit(t, l, With(first, change)), counter.Duplicate)
	wantVerdicts(t, commit(t, l, With(first, Once(actor, per, Add(key, 2)))), counter.ErrRequestIDReused)
	// A call that was not counted leaves nothing under its id.
	wantVerdicts(t, commit(t, l, With(second, change), With(second, change)), counter.AlreadyCounted, counter.AlreadyCounted)
	wantVerdicts(t, commit(t, l, With(second, change)), counter.AlreadyCounted)
	wantVerdicts(t, commit(t, l, Add(key, 10), With(second, Add(key, 100))), counter.Applied, counter.Applied)
	wantCount(t, l, key, 111)
}

// refusedChangesLeaveNone checks that a change which was refused can be made later with the same claims.
func refusedChangesLeaveNone(t *testing.T, l DirectInstance) {
	key, id := Key(), V7(time.Now())
	change := Once("ann", time.Hour, With(id, Add(key, 1)))
	wantVerdicts(t, commit(t, l, Add(key, math.MaxInt64)), counter.Applied)
	wantVerdicts(t, commit(t, l, change), counter.ErrOverflow)
	// A change that overflows whatever the others do makes sure that all are decided in their order.
	full := Key()
	wantVerdicts(t, commit(t, l, Add(full, math.MaxInt64)), counter.Applied)
	wantVerdicts(t, commit(t, l, Add(full, 1), change, Add(key, -1), change, change),
		counter.ErrOverflow, counter.ErrOverflow, counter.Applied, counter.Applied, counter.Duplicate)
	wantCount(t, l, key, math.MaxInt64)
	wantVerdicts(t, commit(t, l, Add(key, -1), change), counter.Applied, counter.Duplicate)
}

func batchesAreAtomic(t *testing.T, l DirectInstance) {
	a, b, c := Key(), Key(), Key()
	wantVerdicts(t, commit(t, l, Add(b, math.MinInt64)), counter.Applied)
	batch := counter.Change{Entries: []counter.Entry{{Key: a, Delta: 1}, {Key: b, Delta: -1}, {Key: c, Delta: 1}}}
	wantVerdicts(t, commit(t, l, Add(a, 10), batch, Add(c, 10)), counter.Applied, counter.ErrOverflow, counter.Applied)
	wantCount(t, l, a, 10)
	wantCount(t, l, b, math.MinInt64)
	wantCount(t, l, c, 10)
	batch.Entries[1].Delta = 5
	wantVerdicts(t, commit(t, l, With(Opaque(), batch)), counter.Applied)
	wantCount(t, l, a, 11)
	wantCount(t, l, b, math.MinInt64+5)
	wantCount(t, l, c, 11)
}

func exactToTheEdge(t *testing.T, l DirectInstance) {
	for _, id := range []func() counter.RequestID{func() counter.RequestID { return counter.RequestID{} }, Opaque} {
		up, down := Key(), Key()
		add := func(key string, delta int64) counter.Change { return With(id(), Add(key, delta)) }
		wantVerdicts(t, commit(t, l, add(up, math.MaxInt64-1), add(down, math.MinInt64+1)), counter.Applied, counter.Applied)
		wantVerdicts(t, commit(t, l, add(up, 2), add(down, -2)), counter.ErrOverflow, counter.ErrOverflow)
		wantVerdicts(t, commit(t, l, add(up, 1), add(down, -1)), counter.Applied, counter.Applied)
		wantVerdicts(t, commit(t, l, add(up, 1), add(down, -1)), counter.ErrOverflow, counter.ErrOverflow)
		wantCount(t, l, up, math.MaxInt64)
		wantCount(t, l, down, math.MinInt64)
		wantVerdicts(t, commit(t, l, add(up, -3), add(down, 3)), counter.Applied, counter.Applied)
		wantCount(t, l, up, math.MaxInt64-3)
		wantCount(t, l, down, math.MinInt64+3)
	}
}

// sumsBeyondTheEdge checks groups whose merged changes do not fit in an int64, though every total does.
func sumsBeyondTheEdge(t *testing.T, l DirectInstance) {
	key := Key()
	wantVerdicts(t, commit(t, l, Add(key, math.MaxInt64)), counter.Applied)
	wantVerdicts(t, commit(t, l, Add(key, math.MinInt64), Add(key, math.MinInt64), Add(key, -1)),
		counter.Applied, counter.ErrOverflow, counter.Applied)
	wantCount(t, l, key, -2)
	low := Key()
	wantVerdicts(t, commit(t, l, Add(low, math.MinInt64/2)), counter.Applied)
	wantVerdicts(t, commit(t, l, Add(low, math.MaxInt64), Add(low, math.MaxInt64/2), Add(low, math.MinInt64), Add(low, 7)),
		counter.Applied, counter.Applied, counter.Applied, counter.Applied)
	wantCount(t, l, low, 5)
}

func largeGroups(t *testing.T, l DirectInstance) {
	const changes, keys = 3_000, 700
	prefix := Key()
	name := func(i int) string { return fmt.Sprintf("%s-%d", prefix, i%keys) }
	var group []counter.Change
	for i := range changes {
		change := Add(name(i), 1)
		if i%3 > 0 {
			change.RequestID = Opaque()
		}
		group = append(group, change)
	}
	batch := counter.Change{RequestID: V7(time.Now())}
	for i := range counter.MaxEntries {
		batch.Entries = append(batch.Entries, counter.Entry{Key: fmt.Sprintf("%s-%d", prefix, i), Delta: 2})
	}
	group = append(group, batch)
	for i, v := range commit(t, l, group...) {
		if v.Outcome != counter.Applied {
			t.Fatalf("change %d: %+v", i, v)
		}
	}
	for i, v := range commit(t, l.Other, group...) {
		want := counter.Duplicate
		if group[i].RequestID.IsZero() {
			want = counter.Applied
		}
		if v.Outcome != want {
			t.Fatalf("repeated change %d: %+v", i, v)
		}
	}
	total := int64(0)
	for start := 0; start < counter.MaxEntries; start += counter.MaxReadKeys {
		var names []string
		for i := range counter.MaxReadKeys {
			names = append(names, fmt.Sprintf("%s-%d", prefix, start+i))
		}
		counts, err := l.Counts(t.Context(), names)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			total += c.Value
		}
	}
	if want := int64(changes + changes/3 + 2*counter.MaxEntries); total != want {
		t.Errorf("total %d, want %d", total, want)
	}
}

// concurrentHandles sends the same changes through both handles at once, grouped and ordered differently.
func concurrentHandles(t *testing.T, l DirectInstance) {
	const ids, senders = 60, 6
	keys := []string{Key(), Key(), Key()}
	var changes []counter.Change
	for i := range ids {
		change := With(Opaque(), Add(keys[i%len(keys)], 1))
		switch i % 4 {
		case 1:
			change = With(V7(time.Now()), Add(keys[i%len(keys)], 1))
		case 2:
			change = Once(fmt.Sprint("actor-", i), time.Hour, change)
		case 3:
			change.Entries = append(change.Entries, counter.Entry{Key: keys[(i+1)%len(keys)], Delta: 1})
		}
		changes = append(changes, change)
	}
	applied := make([][ids]int, senders)
	var group sync.WaitGroup
	for s := range senders {
		ledger := []flush.DirectLedger{l, l.Other}[s%2]
		group.Go(func() {
			size := 5 + 3*s
			for start := 0; start < ids; start += size {
				var sent []counter.Change
				var numbers []int
				for i := start; i < min(start+size, ids); i++ {
					n := i
					if s >= senders/2 {
						n = ids - 1 - i
					}
					sent, numbers = append(sent, changes[n]), append(numbers, n)
				}
				verdicts, _, err := ledger.Commit(context.Background(), sent)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				for i, v := range verdicts {
					switch {
					case v.Outcome == counter.Applied:
						applied[s][numbers[i]]++
					case v.Outcome != counter.Duplicate:
						t.Errorf("change %d: %+v", numbers[i], v)
					}
				}
			}
		})
	}
	group.Wait()
	want := make(map[string]int64)
	for i, change := range changes {
		n := 0
		for s := range senders {
			n += applied[s][i]
		}
		if n != 1 {
			t.Errorf("change %d was applied %d times", i, n)
		}
		for _, e := range change.Entries {
			want[e.Key] += e.Delta
		}
	}
	for key, n := range want {
		wantCount(t, l, key, n)
	}
}

func pruneClaims(t *testing.T, l DirectInstance) {
	const n = 10
	key := Key()
	var changes []counter.Change
	for i := range n {
		changes = append(changes, Once(fmt.Sprint("actor-", i), time.Minute, With(Opaque(), Add(key, 1))))
	}
	prune := func(limit, want int) {
		t.Helper()
		if got, err := l.PruneClaims(t.Context(), limit); err != nil || got != want {
			t.Errorf("PruneClaims(%d) = %d, %v, want %d", limit, got, err, want)
		}
	}
	commit(t, l, changes...)
	prune(100, 0)
	// As long as a request could still meet them, they stay.
	l.AgeClaims(t, Dedupe)
	prune(100, 0)
	wantVerdicts(t, commit(t, l, changes[0]), counter.Duplicate)
	l.AgeClaims(t, time.Hour)
	prune(n+3, n+3)
	prune(100, n-3)
	prune(100, 0)
	wantVerdicts(t, commit(t, l, changes[0]), counter.Applied)
	wantCount(t, l, key, n+1)
}

func doneContext(t *testing.T, l DirectInstance) {
	key := Key()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, change := range []counter.Change{Add(key, 1), With(Opaque(), Add(key, 1))} {
		_, _, err := l.Commit(ctx, []counter.Change{change})
		if !errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt) {
			t.Errorf("Commit with a done context: %v, want ErrUnavailable", err)
		}
	}
	wantCount(t, l, key, 0)
}
