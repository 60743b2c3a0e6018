// Package storetest is the conformance suite of live stores: what the API promises of counting, whatever
// the mode.
package storetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Store is what is tested.
type Store interface {
	Apply(ctx context.Context, c counter.Change) (counter.Receipt, error)
	Counts(ctx context.Context, keys []string) []counter.Reading
	Likes(ctx context.Context, actor string, keys []string) ([]counter.LikeState, error)
}

// Fixture is one set of data, and the stores on it.
type Fixture struct {
	// Open starts another store on the data, as another server would. The fixture closes it. A store that
	// must be alone on its data is opened once and returned again.
	Open func(t *testing.T) Store
	// SetTotal gives a key that was never used a total in the ledger.
	SetTotal func(t *testing.T, key string, total int64)
	// AtomicBatches says that a batch is refused as a whole even if its keys are far apart.
	AtomicBatches bool
}

// Exercise runs the suite. New makes a fixture with no data.
func Exercise(t *testing.T, dedupe time.Duration, makeFixture func(t *testing.T) *Fixture) {
	for name, test := range map[string]func(t *testing.T, s *suite){
		"Counts":            testCounts,
		"RequestIDs":        testRequestIDs,
		"RequestIDAges":     testRequestIDAges,
		"RequestIDRace":     testRequestIDRace,
		"BatchIDs":          testBatchIDs,
		"OncePer":           testOncePer,
		"OncePerRace":       testOncePerRace,
		"Edges":             testEdges,
		"EdgesInOneGroup":   testEdgesInOneGroup,
		"BatchOverflow":     testBatchOverflow,
		"AsOf":              testAsOf,
		"SteadyReads":       testSteadyReads,
		"ManyKeys":          testManyKeys,
		"DuplicatesInGroup": testDuplicatesInGroup,
		"CanceledCaller":    testCanceledCaller,

		"Likes":                    testLikes,
		"LikeMoments":              testLikeMoments,
		"LikeIDs":                  testLikeIDs,
		"LikeIDReuse":              testLikeIDReuse,
		"LikeIDAges":               testLikeIDAges,
		"ManyLikers":               testManyLikers,
		"LikeHammer":               testLikeHammer,
		"ActorsLikes":              testActorsLikes,
		"LikesInOneGroup":          testLikesInOneGroup,
		"LikesAtTheEdge":           testLikesAtTheEdge,
		"LikesAtTheEdgeInOneGroup": testLikesAtTheEdgeInOneGroup,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := makeFixture(t)
			test(t, &suite{Fixture: f, store: f.Open(t), dedupe: dedupe})
		})
	}
}

type suite struct {
	*Fixture
	store  Store
	dedupe time.Duration
}

// NewID makes a UUIDv7 with a time of the caller's choice.
func NewID(at time.Time) string {
	id := uuid.Must(uuid.NewRandom())
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	return id.String()
}

func change(key string, delta int64, id string) counter.Change {
	c := counter.Change{Entries: []counter.Entry{{Key: key, Delta: delta}}}
	if id != "" {
		c.RequestID = counter.ParseRequestID(id)
	}
	return c
}

func once(c counter.Change, actor string, per time.Duration) counter.Change {
	c.Actor, c.OncePer = actor, per
	return c
}

// apply expects an outcome.
func apply(t *testing.T, s Store, c counter.Change, want counter.Outcome) counter.Receipt {
	t.Helper()
	r, err := s.Apply(t.Context(), c)
	if err != nil || r.Outcome != want {
		t.Fatalf("Apply(%d entries) = %v, %v, want outcome %v", len(c.Entries), r.Outcome, err, want)
	}
	return r
}

// refuse expects an error.
func refuse(t *testing.T, s Store, c counter.Change, want error) {
	t.Helper()
	if r, err := s.Apply(t.Context(), c); !isError(err, want) {
		t.Fatalf("Apply = %v, %v, want error %v", r.Outcome, err, want)
	}
}

// counts expects what keys hold.
func counts(t *testing.T, s Store, want map[string]int64) {
	t.Helper()
	keys := make([]string, 0, len(want))
	for key := range want {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	got := s.Counts(t.Context(), keys)
	if len(got) != len(keys) {
		t.Fatalf("Counts of %d keys returned %d", len(keys), len(got))
	}
	for i, key := range keys {
		if got[i].Err != nil {
			t.Fatalf("Counts(%s): %v", key, got[i].Err)
		}
		if got[i].Key != key || got[i].Value != want[key] {
			t.Errorf("Counts(%s) = %s %d, want %d", key, got[i].Key, got[i].Value, want[key])
		}
		if got[i].AsOf.IsZero() {
			t.Errorf("Counts(%s) has no as-of", key)
		}
	}
}

func testCounts(t *testing.T, s *suite) {
	counts(t, s.store, map[string]int64{"never/seen": 0})
	apply(t, s.store, change("a/1", 1, ""), counter.Applied)
	apply(t, s.store, change("a/1", 41, ""), counter.Applied)
	apply(t, s.store, change("a/2", -7, ""), counter.Applied)
	apply(t, s.store, counter.Change{Entries: []counter.Entry{{Key: "a/1", Delta: -2}, {Key: "ключ/✓", Delta: 3}}}, counter.Applied)
	s.SetTotal(t, "imported", 1_000_000)
	apply(t, s.store, change("imported", 1, ""), counter.Applied)
	want := map[string]int64{"a/1": 40, "a/2": -7, "ключ/✓": 3, "imported": 1_000_001, "never/seen": 0}
	counts(t, s.store, want)
	counts(t, s.Open(t), want)
}

func testRequestIDs(t *testing.T, s *suite) {
	other := s.Open(t)
	for _, id := range []string{NewID(time.Now()), "order-42", "x", uuid.NewString()} {
		key := "k/" + id
		c := change(key, 5, id)
		apply(t, s.store, c, counter.Applied)
		apply(t, s.store, c, counter.Duplicate)
		apply(t, other, c, counter.Duplicate)
		refuse(t, other, change(key, 6, id), counter.ErrRequestIDReused)
		refuse(t, s.store, once(c, "someone", time.Hour), counter.ErrRequestIDReused)
		counts(t, other, map[string]int64{key: 5})
	}
}

func testRequestIDAges(t *testing.T, s *suite) {
	now := time.Now()
	refuse(t, s.store, change("k", 1, NewID(now.Add(-s.dedupe-time.Second))), counter.ErrRequestIDExpired)
	refuse(t, s.store, change("k", 1, NewID(now.Add(counter.MaxEarly+10*time.Second))), counter.ErrRequestIDEarly)
	apply(t, s.store, change("k", 1, NewID(now.Add(-s.dedupe+20*time.Second))), counter.Applied)
	early := change("k", 1, NewID(now.Add(counter.MaxEarly-10*time.Second)))
	apply(t, s.store, early, counter.Applied)
	apply(t, s.store, early, counter.Duplicate)
	counts(t, s.store, map[string]int64{"k": 2})
}

// testRequestIDRace sends each id many times at once over two servers.
func testRequestIDRace(t *testing.T, s *suite) {
	stores := []Store{s.store, s.Open(t)}
	const ids, copies = 100, 6
	var applied tally
	run(t, ids*copies, func(i int) error {
		id := fmt.Sprint("id-", i%ids)
		if i%2 == 0 {
			id = "even-" + id
		}
		r, err := stores[i/ids%2].Apply(t.Context(), change(fmt.Sprint("key/", i%7), 1, id+fmt.Sprint(i%7)))
		if err == nil {
			applied.add(fmt.Sprint("key/", i%7), r.Outcome)
		}
		return err
	})
	counts(t, s.store, applied.totals())
}

func testBatchIDs(t *testing.T, s *suite) {
	batch := counter.Change{RequestID: counter.ParseRequestID(NewID(time.Now()))}
	want := map[string]int64{}
	for i := range 500 {
		key := fmt.Sprint("batch/", i)
		batch.Entries = append(batch.Entries, counter.Entry{Key: key, Delta: int64(i + 1)})
		want[key] = int64(i + 1)
	}
	apply(t, s.store, batch, counter.Applied)
	apply(t, s.Open(t), batch, counter.Duplicate)
	changed := batch
	changed.Entries = slices.Clone(batch.Entries)
	changed.Entries[17].Delta++
	refuse(t, s.store, changed, counter.ErrRequestIDReused)
	counts(t, s.store, want)

	// Entries that cancelled each other out leave their claim.
	nothing := change("cancelled", 0, "nothing")
	apply(t, s.store, nothing, counter.Applied)
	apply(t, s.Open(t), nothing, counter.Duplicate)
	refuse(t, s.store, change("cancelled", 5, "nothing"), counter.ErrRequestIDReused)
	counts(t, s.store, map[string]int64{"cancelled": 0})
}

func testOncePer(t *testing.T, s *suite) {
	other := s.Open(t)
	now := time.Now()
	first := once(change("view", 1, ""), "ada", 7*24*time.Hour)
	apply(t, s.store, first, counter.Applied)
	apply(t, other, first, counter.AlreadyCounted)
	apply(t, s.store, once(change("view", 1, ""), "bob", 7*24*time.Hour), counter.Applied)
	apply(t, s.store, once(change("other", 1, ""), "ada", 7*24*time.Hour), counter.Applied)

	// The period of a UUIDv7 is its own: two ids of one period, one of the next.
	const per = 10 * time.Second
	start := time.UnixMilli(counter.PeriodStart(now.UnixMilli(), per))
	inPeriod := once(change("timed", 1, NewID(start)), "ada", per)
	apply(t, s.store, inPeriod, counter.Applied)
	apply(t, other, inPeriod, counter.Duplicate)
	apply(t, s.store, once(change("timed", 1, NewID(start.Add(per-1))), "ada", per), counter.AlreadyCounted)
	apply(t, other, once(change("timed", 1, NewID(start.Add(per))), "ada", per), counter.Applied)

	// What was not counted does not use up its id.
	repeat := once(change("timed", 1, NewID(start.Add(1))), "ada", per)
	apply(t, s.store, repeat, counter.AlreadyCounted)
	apply(t, s.store, repeat, counter.AlreadyCounted)

	opaque := once(change("opaque", 1, "visit-1"), "ada", 7*24*time.Hour)
	apply(t, s.store, opaque, counter.Applied)
	apply(t, s.store, opaque, counter.Duplicate)
	apply(t, s.store, once(change("opaque", 1, "visit-2"), "ada", 7*24*time.Hour), counter.AlreadyCounted)
	counts(t, s.store, map[string]int64{"view": 2, "other": 1, "timed": 2, "opaque": 1})
}

func testOncePerRace(t *testing.T, s *suite) {
	stores := []Store{s.store, s.Open(t)}
	run(t, 300, func(i int) error {
		_, err := stores[i%2].Apply(t.Context(), once(change("page", 1, ""), fmt.Sprint("actor-", i%50), 7*24*time.Hour))
		return err
	})
	counts(t, s.store, map[string]int64{"page": 50})
}

func testEdges(t *testing.T, s *suite) {
	for _, edge := range []struct {
		key         string
		start, last int64
		beyond      int64
	}{
		{"max", math.MaxInt64 - 5, 5, 1},
		{"min", math.MinInt64 + 5, -5, -1},
	} {
		s.SetTotal(t, edge.key, edge.start)
		counts(t, s.store, map[string]int64{edge.key: edge.start}) // the store sees the total from now on
		refuse(t, s.store, change(edge.key, edge.last+edge.beyond, "too-much-"+edge.key), counter.ErrOverflow)
		apply(t, s.store, change(edge.key, edge.last, "to-the-edge-"+edge.key), counter.Applied)
		refuse(t, s.store, change(edge.key, edge.beyond, ""), counter.ErrOverflow)
		counts(t, s.store, map[string]int64{edge.key: edge.start + edge.last})
		apply(t, s.store, change(edge.key, -edge.beyond, ""), counter.Applied)
		counts(t, s.store, map[string]int64{edge.key: edge.start + edge.last - edge.beyond})
		// A refusal did not use up its id.
		apply(t, s.store, change(edge.key, -edge.last, "back-"+edge.key), counter.Applied)
		apply(t, s.store, change(edge.key, edge.last+edge.beyond, "too-much-"+edge.key), counter.Applied)
	}
	apply(t, s.store, change("whole", math.MaxInt64, ""), counter.Applied)
	refuse(t, s.store, change("whole", 1, ""), counter.ErrOverflow)
	apply(t, s.store, change("whole", math.MinInt64, ""), counter.Applied)
	apply(t, s.store, change("whole", math.MinInt64+1, ""), counter.Applied)
	refuse(t, s.store, change("whole", -1, ""), counter.ErrOverflow)
	counts(t, s.store, map[string]int64{"whole": math.MinInt64})
}

// testEdgesInOneGroup has many changes of one key arrive together of which only some fit.
func testEdgesInOneGroup(t *testing.T, s *suite) {
	s.SetTotal(t, "full", math.MaxInt64-30)
	counts(t, s.store, map[string]int64{"full": math.MaxInt64 - 30})
	var applied, refused tally
	run(t, 100, func(i int) error {
		_, err := s.store.Apply(t.Context(), change("full", 1, fmt.Sprint("id-", i)))
		if isError(err, counter.ErrOverflow) {
			refused.add("full", counter.Applied)
			return nil
		}
		if err == nil {
			applied.add("full", counter.Applied)
		}
		return err
	})
	if applied.totals()["full"] != 30 || refused.totals()["full"] != 70 {
		t.Errorf("%d applied, %d refused, want 30 and 70", applied.totals()["full"], refused.totals()["full"])
	}
	counts(t, s.store, map[string]int64{"full": math.MaxInt64})
}

func testBatchOverflow(t *testing.T, s *suite) {
	s.SetTotal(t, "full", math.MaxInt64)
	counts(t, s.store, map[string]int64{"full": math.MaxInt64})
	batch := counter.Change{Entries: []counter.Entry{{Key: "full", Delta: 1}}}
	want := map[string]int64{"full": math.MaxInt64}
	for i := range 20 {
		batch.Entries = append(batch.Entries, counter.Entry{Key: fmt.Sprint("near/", i), Delta: 1})
		want[fmt.Sprint("near/", i)] = 0
	}
	refuse(t, s.store, batch, counter.ErrOverflow)
	if s.AtomicBatches {
		counts(t, s.store, want)
	}
}

func testAsOf(t *testing.T, s *suite) {
	other := s.Open(t)
	var last time.Time
	for i := range 50 {
		key := fmt.Sprint("k/", i%5)
		before := other.Counts(t.Context(), []string{key})[0]
		r := apply(t, s.store, change(key, 1, ""), counter.Applied)
		if !r.AsOf.After(before.AsOf) {
			t.Fatalf("a read before the write is as of %v, the write of %v", before.AsOf, r.AsOf)
		}
		last = r.AsOf
	}
	if d := time.Since(last); d < -time.Minute || d > time.Minute {
		t.Errorf("as-of is %v away from now", d)
	}
}

// testSteadyReads reads while writing: each read lies between what was acknowledged before it began and what
// was issued when it ended.
func testSteadyReads(t *testing.T, s *suite) {
	other := s.Open(t)
	var issued, acked progress
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(t, 4, func(int) error {
			for range 200 {
				issued.add(1)
				if _, err := s.store.Apply(t.Context(), change("steady", 1, "")); err != nil {
					return err
				}
				acked.add(1)
			}
			return nil
		})
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		low := acked.get()
		got := other.Counts(t.Context(), []string{"steady"})[0]
		high := issued.get()
		if got.Err != nil || got.Value < low || got.Value > high {
			t.Fatalf("read %d, %v; acknowledged before: %d, issued after: %d", got.Value, got.Err, low, high)
		}
	}
	counts(t, s.store, map[string]int64{"steady": 800})
}

func testManyKeys(t *testing.T, s *suite) {
	batch := counter.Change{}
	for i := range counter.MaxEntries {
		batch.Entries = append(batch.Entries, counter.Entry{Key: fmt.Sprint("many/", i), Delta: int64(i) + 1})
	}
	apply(t, s.store, batch, counter.Applied)
	keys := make([]string, counter.MaxReadKeys)
	for i := range keys {
		keys[i] = fmt.Sprint("many/", i*10)
	}
	for i, got := range s.store.Counts(t.Context(), keys) {
		if got.Err != nil || got.Key != keys[i] || got.Value != int64(i*10)+1 {
			t.Fatalf("%s = %s %d, %v", keys[i], got.Key, got.Value, got.Err)
		}
	}
}

// testDuplicatesInGroup has repeats arrive together, so that they are in one group.
func testDuplicatesInGroup(t *testing.T, s *suite) {
	for round := range 20 {
		id := NewID(time.Now())
		key := fmt.Sprint("k/", round)
		var outcomes tally
		run(t, 10, func(int) error {
			r, err := s.store.Apply(t.Context(), change(key, 3, id))
			if err == nil {
				outcomes.add(fmt.Sprint(r.Outcome), counter.Applied)
			}
			return err
		})
		got := outcomes.totals()
		if got[fmt.Sprint(counter.Applied)] != 1 || got[fmt.Sprint(counter.Duplicate)] != 9 {
			t.Fatalf("outcomes %v, want 1 applied and 9 duplicates", got)
		}
		counts(t, s.store, map[string]int64{key: 3})
	}
}

func testCanceledCaller(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	id := NewID(time.Now())
	_, err := s.store.Apply(ctx, change("k", 1, id))
	if err == nil {
		return // it was quicker
	}
	if !isError(err, counter.ErrUnavailable) && !isError(err, counter.ErrInDoubt) && !isError(err, context.Canceled) {
		t.Fatalf("Apply of a caller who left: %v", err)
	}
	if _, err := s.store.Apply(t.Context(), change("k", 1, id)); err != nil {
		t.Fatal(err)
	}
	counts(t, s.store, map[string]int64{"k": 1})
}
