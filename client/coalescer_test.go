package client_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plusone-dev/plusone/client"
)

// never is a flush interval within which a test is over, so that it says itself what is sent when.
const never = time.Minute

func coalesce(t *testing.T, c *client.Client, opts ...client.CoalescerOption) *client.Coalescer {
	t.Helper()
	o, err := c.NewCoalescer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(patient(t)) })
	return o
}

func mustAdd(t *testing.T, o *client.Coalescer, key string, delta int64) {
	t.Helper()
	if err := o.Add(t.Context(), key, delta); err != nil {
		t.Fatal(err)
	}
}

func mustFlush(t *testing.T, o *client.Coalescer) {
	t.Helper()
	if err := o.Flush(patient(t)); err != nil {
		t.Fatal(err)
	}
}

func checkTotals(t *testing.T, store *fakeStore, want map[string]int64) {
	t.Helper()
	for key, n := range want {
		if got := store.total(key); got != n {
			t.Errorf("%s is %d, want %d", key, got, n)
		}
	}
}

func checkStats(t *testing.T, o *client.Coalescer, want client.CoalescerStats) {
	t.Helper()
	if got := o.Stats(); got != want {
		t.Errorf("stats are %+v, want %+v", got, want)
	}
}

// gate holds a call up until it is opened.
func gate() (held fault, open func()) {
	opened := make(chan struct{})
	return func(_ context.Context, apply func() (any, error)) (any, error) {
		<-opened
		return apply()
	}, sync.OnceFunc(func() { close(opened) })
}

func TestCoalescerSendsSums(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	o := coalesce(t, dial(t, server.addr), client.WithFlushInterval(never))
	for range 1000 {
		mustAdd(t, o, "views/a", 2)
		mustAdd(t, o, "views/b", 3)
	}
	mustAdd(t, o, "views/nothing", 5)
	mustAdd(t, o, "views/nothing", -5)
	if calls := server.calls.Load(); calls > 0 {
		t.Errorf("%d calls were made before the interval was over", calls)
	}
	mustFlush(t, o)
	checkTotals(t, store, map[string]int64{"views/a": 2000, "views/b": 3000, "views/nothing": 0})
	if calls := server.calls.Load(); calls != 1 {
		t.Errorf("%d calls were made, want 1", calls)
	}
	checkStats(t, o, client.CoalescerStats{Counted: 2002})
}

func TestCoalescerSendsByItself(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	o := coalesce(t, dial(t, serve(t, store).addr))
	for n := int64(1); n <= 3; n++ {
		if err := o.AddAndWait(patient(t), "views/a", 1); err != nil {
			t.Fatal(err)
		}
		checkTotals(t, store, map[string]int64{"views/a": n})
	}
}

// Whatever becomes of answers, each increment is counted once.
func TestCoalescerCountsOnce(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	for range 20 {
		server.then(nil, server.loseAnswer, refuseWith(codes.Unavailable, reason("STORE_UNAVAILABLE")), nil)
	}
	o := coalesce(t, dial(t, server.addr), client.WithFlushInterval(time.Millisecond))
	const adders, adds = 20, 500
	var group sync.WaitGroup
	for a := range adders {
		group.Go(func() {
			for n := range adds {
				key := fmt.Sprint("views/", (a+n)%50)
				var err error
				if n%10 == 0 {
					err = o.AddAndWait(patient(t), key, 1)
				} else {
					err = o.Add(patient(t), key, 1)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if err := o.Close(patient(t)); err != nil {
		t.Error(err)
	}
	for key := range 50 {
		checkTotals(t, store, map[string]int64{fmt.Sprint("views/", key): adders * adds / 50})
	}
	checkStats(t, o, client.CoalescerStats{Counted: adders * adds})
}

// While no server answers for good, sums grow and nothing else does.
func TestCoalescerOutlastsOutages(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	// Without a RetryInfo a single call gives up at once.
	for range 5 {
		server.then(refuseWith(codes.ResourceExhausted, reason("STORE_FULL")))
	}
	o := coalesce(t, dial(t, server.addr))
	for range 1000 {
		mustAdd(t, o, "views/a", 1)
	}
	mustFlush(t, o)
	checkTotals(t, store, map[string]int64{"views/a": 1000})
	checkStats(t, o, client.CoalescerStats{Counted: 1000})
}

// An entry that is refused takes no other with it.
func TestCoalescerRefusal(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	server := serve(t, store)
	store.full = "views/bad"
	var mu sync.Mutex
	var failed []client.Entry
	o := coalesce(t, dial(t, server.addr), client.WithFlushInterval(never), client.OnFailure(func(e client.Entry, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, e)
		if !errors.Is(err, client.ErrOverflow) {
			t.Errorf("got %v, want ErrOverflow", err)
		}
	}))
	want := map[string]int64{"views/bad": 0}
	for i := range 30 {
		want[fmt.Sprint("views/", i)] = 1
		mustAdd(t, o, fmt.Sprint("views/", i), 1)
		if i%10 == 0 {
			mustAdd(t, o, "views/bad", 7)
		}
	}
	waited := make(chan error)
	go func() { waited <- o.AddAndWait(patient(t), "views/bad", 1) }()
	go func() { waited <- o.AddAndWait(patient(t), "views/0", 1) }()
	want["views/0"] = 2
	for !settled(o, 31+4) {
		if err := o.Flush(patient(t)); err != nil && !errors.Is(err, client.ErrOverflow) {
			t.Fatal(err)
		}
	}
	if first, second := <-waited, <-waited; (first == nil) == (second == nil) {
		t.Errorf("those who waited got %v and %v, want one ErrOverflow", first, second)
	}
	checkTotals(t, store, want)
	mu.Lock()
	defer mu.Unlock()
	var sum int64
	for _, e := range failed {
		sum += e.Delta
	}
	if sum != 3*7+1 {
		t.Errorf("failures are told of %v", failed)
	}
}

// settled reports whether so many increments are.
func settled(o *client.Coalescer, adds int64) bool {
	s := o.Stats()
	return s.Counted+s.Refused+s.InDoubt == adds
}

// A batch that is refused because of its caller is not sent again in halves.
func TestCoalescerOfStranger(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		code   codes.Code
		reason string
		want   error
	}{
		{codes.Unauthenticated, "UNAUTHENTICATED", client.ErrUnauthenticated},
		{codes.PermissionDenied, "MISSING_SCOPE", client.ErrPermissionDenied},
	} {
		server := serve(t, newFakeStore(), refuseWith(test.code, reason(test.reason)))
		o := coalesce(t, dial(t, server.addr), client.WithFlushInterval(never))
		for i := range 10 {
			mustAdd(t, o, fmt.Sprint("views/", i), 1)
		}
		if err := o.Flush(patient(t)); !errors.Is(err, test.want) {
			t.Errorf("flush says %v, want %v", err, test.want)
		}
		if n := server.calls.Load(); n != 1 {
			t.Errorf("%s: %d calls", test.reason, n)
		}
	}
}

func TestCoalescerWaitsForRoom(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	held, open := gate()
	defer open()
	server := serve(t, store, held)
	o := coalesce(t, dial(t, server.addr), client.WithMaxKeys(2), client.WithFlushInterval(time.Millisecond))
	mustAdd(t, o, "views/a", 1)
	mustAdd(t, o, "views/b", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Add(ctx, "views/c", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	added := make(chan error)
	go func() { added <- o.AddAndWait(patient(t), "views/c", 1) }()
	open()
	if err := <-added; err != nil {
		t.Error(err)
	}
	checkTotals(t, store, map[string]int64{"views/a": 1, "views/b": 1, "views/c": 1})
	checkStats(t, o, client.CoalescerStats{Counted: 3})
}

func TestCoalescerDropsWhenFull(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	o := coalesce(t, dial(t, serve(t, store).addr), client.WithMaxKeys(1), client.WithFlushInterval(never), client.DropWhenFull())
	mustAdd(t, o, "views/a", 1)
	for _, add := range []func(context.Context, string, int64) error{o.Add, o.AddAndWait} {
		if err := add(t.Context(), "views/b", 1); !errors.Is(err, client.ErrFull) {
			t.Errorf("got %v, want ErrFull", err)
		}
	}
	mustAdd(t, o, "views/a", 1) // needs no room
	mustFlush(t, o)
	mustAdd(t, o, "views/b", 1)
	mustFlush(t, o)
	checkTotals(t, store, map[string]int64{"views/a": 2, "views/b": 1})
	checkStats(t, o, client.CoalescerStats{Counted: 3, Dropped: 2})
}

func TestCoalescerSplitsLargeSums(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	o := coalesce(t, dial(t, serve(t, store).addr), client.WithMaxDelta(10), client.WithFlushInterval(never), client.DropWhenFull())
	for range 100 {
		mustAdd(t, o, "views/a", 9)
		mustAdd(t, o, "views/b", -10)
	}
	if err := o.Add(t.Context(), "views/b", -1); !errors.Is(err, client.ErrFull) {
		t.Errorf("got %v, want ErrFull, since the sum would have more than 100 parts", err)
	}
	mustFlush(t, o)
	checkTotals(t, store, map[string]int64{"views/a": 900, "views/b": -1000})
	if n := store.largest(); n > 10 {
		t.Errorf("a delta of %d was sent, want at most 10", n)
	}
	checkStats(t, o, client.CoalescerStats{Counted: 200, Dropped: 1})
}

// A sum of which only a part was counted is in doubt: who repeats what it was made of counts that part twice.
func TestCoalescerCountsASumInPart(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	// The sums are 1,089 entries, in two batches. Whichever comes second is refused.
	server := serve(t, store, nil, refuseWith(codes.PermissionDenied, reason("MISSING_SCOPE")))
	o := coalesce(t, dial(t, server.addr), client.WithMaxDelta(1), client.WithFlushInterval(never))
	const keys, adds = 11, 99
	var waiting sync.WaitGroup
	failures := make([]error, keys)
	for k := range keys {
		waiting.Go(func() { failures[k] = o.AddAndWait(patient(t), fmt.Sprint("views/", k), 1) })
	}
	for o.Stats().Keys < keys {
		runtime.Gosched()
	}
	for k := range keys {
		for range adds - 1 {
			mustAdd(t, o, fmt.Sprint("views/", k), 1)
		}
	}
	if err := o.Flush(patient(t)); !errors.Is(err, client.ErrPermissionDenied) {
		t.Errorf("flush says %v, want ErrPermissionDenied", err)
	}
	waiting.Wait()
	var want client.CoalescerStats
	for k, err := range failures {
		total := store.total(fmt.Sprint("views/", k))
		if (total == adds) != (err == nil) || total < adds && !errors.Is(err, client.ErrPermissionDenied) {
			t.Errorf("%d of %d were counted, and who waits got %v", total, adds, err)
		}
		switch doubt := errors.Is(err, client.ErrInDoubt); {
		case (total > 0 && total < adds) != doubt:
			t.Errorf("%d of %d were counted, in doubt: %v", total, adds, doubt)
		case doubt && asError(t, err).RequestID != "":
			t.Error("a request id is said to settle the matter")
		}
		switch total {
		case adds:
			want.Counted += adds
		case 0:
			want.Refused += adds
		default:
			want.InDoubt += adds
		}
	}
	if want.InDoubt != adds {
		t.Errorf("stats should be %+v, but one sum should be counted in part", want)
	}
	checkStats(t, o, want)
}

func TestCoalescerInvalid(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, newFakeStore()).addr)
	o := coalesce(t, c, client.WithMaxDelta(10))
	for _, e := range []client.Entry{{Key: "a\xff", Delta: 1}, {Key: "a"}, {Key: "a", Delta: 11}, {Key: "a", Delta: -11}} {
		if err := o.Add(t.Context(), e.Key, e.Delta); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", e, err)
		}
	}
	for i, opt := range []client.CoalescerOption{
		client.WithFlushInterval(0), client.WithFlushInterval(time.Hour), client.WithMaxKeys(0), client.WithMaxDelta(0),
		client.WithMaxDelta(client.DefaultMaxDelta + 1),
	} {
		if _, err := c.NewCoalescer(opt); err == nil {
			t.Errorf("option %d is taken", i)
		}
	}
}

func TestCoalescerClose(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	o := coalesce(t, dial(t, serve(t, store).addr), client.WithFlushInterval(never))
	mustAdd(t, o, "views/a", 1)
	for range 2 {
		if err := o.Close(patient(t)); err != nil {
			t.Error(err)
		}
	}
	checkTotals(t, store, map[string]int64{"views/a": 1})
	if err := o.Add(t.Context(), "views/a", 1); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// Who gives up leaves what was sent in doubt, and is told so.
func TestCoalescerGivesUp(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	arrived := make(chan struct{})
	server := serve(t, store, func(ctx context.Context, apply func() (any, error)) (any, error) {
		_, _ = apply()
		close(arrived)
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	})
	o := coalesce(t, dial(t, server.addr))
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error)
	go func() { waited <- o.AddAndWait(ctx, "views/a", 1) }()
	<-arrived
	cancel()
	if err := <-waited; !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want ErrInDoubt and context.Canceled", err)
	}
	if err := o.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush: got %v, want context.Canceled", err)
	}
	if err := o.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: got %v, want context.Canceled", err)
	}
	checkStats(t, o, client.CoalescerStats{InDoubt: 1})
}

// A Client that is closed first fails what is pending, and nothing hangs.
func TestCoalescerOfClosedClient(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, newFakeStore()).addr)
	o := coalesce(t, c, client.WithFlushInterval(never))
	mustAdd(t, o, "views/a", 1)
	mustAdd(t, o, "views/b", 1)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(patient(t)); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	checkStats(t, o, client.CoalescerStats{Refused: 2})
}
