package flush_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
)

// holderEnv makes the test binary a process that holds the ledger at this path.
const holderEnv = "PLUSONE_TEST_HOLD_LEDGER"

// runAsLedgerHolder opens the ledger, commits changes one after the other, and says which are committed. It
// ends by being killed, or with its standard input.
func runAsLedgerHolder() {
	path := os.Getenv(holderEnv)
	if path == "" {
		return
	}
	err := func() error {
		ctx := context.Background()
		ledger, err := flush.OpenSQLite(ctx, path, flush.SQLiteOptions{DedupeWindow: ledgertest.Dedupe})
		if err != nil {
			return err
		}
		if err := ledger.Migrate(ctx); err != nil {
			return err
		}
		go func() {
			var b [1]byte
			_, _ = os.Stdin.Read(b[:]) // returns when the parent is gone
			os.Exit(3)
		}()
		for i := 1; ; i++ {
			if _, _, err := ledger.Commit(ctx, []counter.Change{ledgertest.Add("views/held", 1)}); err != nil {
				return err
			}
			fmt.Println("committed", i)
		}
	}()
	fmt.Println(err)
	os.Exit(2)
}

func TestSQLiteIsForOneProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), holderEnv+"="+path)
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	lines, acknowledged := bufio.NewScanner(stdout), 0
	for acknowledged < 20 && lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "committed %d", &acknowledged); err != nil && !strings.Contains(lines.Text(), "goose") {
			t.Fatalf("the holder says: %s", lines.Text())
		}
	}
	if _, err := flush.OpenSQLite(t.Context(), path, flush.SQLiteOptions{}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second process opened the ledger: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "committed %d", &acknowledged); err != nil {
			break // the line that was being written
		}
	}
	if err := holder.Wait(); err == nil {
		t.Error("the holder ended well, though it was killed")
	}

	// The killed process left no lock, and all that it had acknowledged, perhaps one change more.
	ledger := openSQLite(t, path, flush.SQLiteOptions{})
	counts, err := ledger.Counts(t.Context(), []string{"views/held"})
	if err != nil {
		t.Fatal(err)
	}
	if n := counts[0].Value; n < int64(acknowledged) || n > int64(acknowledged)+1 {
		t.Errorf("count %d after %d were acknowledged", n, acknowledged)
	}
}

func TestSQLiteSecondOpenInOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "plusone.db")
	first := openSQLite(t, path, flush.SQLiteOptions{})
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		if _, err := flush.OpenSQLite(t.Context(), name, flush.SQLiteOptions{}); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("opened twice: %v", err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	_, _, err := first.Commit(t.Context(), []counter.Change{ledgertest.Add("k", 1)})
	if !errors.Is(err, counter.ErrUnavailable) {
		t.Errorf("Commit after Close: %v", err)
	}
	openSQLite(t, link, flush.SQLiteOptions{})
}

// testClock is a wall clock that is set by hand.
type testClock struct{ ms atomic.Int64 }

func newTestClock() *testClock {
	c := &testClock{}
	c.ms.Store(time.Date(2030, 1, 2, 3, 59, 59, 0, time.UTC).UnixMilli())
	return c
}

func (c *testClock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *testClock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

func TestSQLiteClock(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	path := filepath.Join(t.TempDir(), "plusone.db")
	ledger := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now, History: flush.HistoryMinute})
	commit := func(want counter.Outcome, change counter.Change) time.Time {
		t.Helper()
		verdicts, at, err := ledger.Commit(t.Context(), []counter.Change{change})
		if err != nil || verdicts[0] != (flush.Verdict{Outcome: want}) {
			t.Fatalf("%+v, %v, want outcome %d", verdicts, err, want)
		}
		return at
	}
	// Without an id, the period is that of the call.
	once := ledgertest.Once("ann", time.Minute, ledgertest.Add("views/a", 1))
	first := commit(counter.Applied, once)
	commit(counter.AlreadyCounted, once)
	clock.advance(time.Second)
	second := commit(counter.Applied, once)

	// A clock that is set back neither repeats a moment nor brings an earlier one.
	clock.advance(-time.Hour)
	third := commit(counter.Applied, ledgertest.Add("views/a", 5))
	if !first.Before(second) || !second.Before(third) {
		t.Errorf("commits as of %v, %v, %v", first, second, third)
	}

	rows, err := openDB(t, "sqlite", path).QueryContext(t.Context(), `SELECT bucket, delta FROM counter_history ORDER BY bucket`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var bucket string
		var delta int64
		if err := rows.Scan(&bucket, &delta); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(bucket, " ", delta))
	}
	if want := "2030-01-02T03:59:00Z 1,2030-01-02T04:00:00Z 6"; strings.Join(got, ",") != want || rows.Err() != nil {
		t.Errorf("history %v, %v, want %s", got, rows.Err(), want)
	}
}

// TestSQLiteIDExpiresWithItsClaim checks that there is no moment at which an id is accepted and its claim
// forgotten.
func TestSQLiteIDExpiresWithItsClaim(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	path := filepath.Join(t.TempDir(), "plusone.db")
	ledger := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now})
	change := ledgertest.With(ledgertest.V7(clock.now().Add(counter.MaxEarly)), ledgertest.Add("views/a", 1))
	applied := 0
	for range 60 {
		verdicts, _, err := ledger.Commit(t.Context(), []counter.Change{change})
		if err != nil {
			t.Fatal(err)
		}
		if verdicts[0].Outcome == counter.Applied {
			applied++
		}
		if _, err := ledger.PruneClaims(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
		clock.advance(10 * time.Second)
	}
	if applied != 1 {
		t.Errorf("applied %d times", applied)
	}
	if n, err := ledger.PruneClaims(t.Context(), 100); n != 0 || err != nil {
		t.Errorf("a claim is left after ten minutes: %d, %v", n, err)
	}
	left := 0
	if err := openDB(t, "sqlite", path).QueryRowContext(t.Context(), `SELECT count(*) FROM request_ids`).Scan(&left); left != 0 || err != nil {
		t.Errorf("%d claims are left after ten minutes, %v", left, err)
	}
}

// The ledger knows balances by heart, and must notice when they are not what it knows.
func TestSQLiteBalancesChangedByOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	ledger := openSQLite(t, path, flush.SQLiteOptions{})
	db := openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)")
	commit := func(want int64) {
		t.Helper()
		if _, _, err := ledger.Commit(t.Context(), []counter.Change{ledgertest.Add("views/a", 1)}); err != nil {
			t.Fatal(err)
		}
		counts, err := ledger.Counts(t.Context(), []string{"views/a"})
		if err != nil || counts[0].Value != want {
			t.Fatalf("%+v, %v, want %d", counts, err, want)
		}
		ledgertest.Audit(t, db)
	}
	commit(1)
	commit(2)
	mustExec(t, db, `BEGIN; UPDATE counters SET count = count + 100, bucket_delta = bucket_delta + 100; COMMIT`)
	commit(103)
	commit(104)
	mustExec(t, db, `BEGIN; DELETE FROM counters; DELETE FROM history; COMMIT`)
	commit(1)
}

// A known id among new ones takes back what was written of these, and later groups must be as if it had not been.
func TestSQLiteKnownAmongNewIDs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plusone.db")
	ledger := openSQLite(t, path, flush.SQLiteOptions{})
	const rounds, size = 6, 150
	known := ledgertest.With(ledgertest.V7(time.Now()), ledgertest.Add("views/known", 1))
	for round := range rounds {
		group := make([]counter.Change, size)
		for i := range group {
			group[i] = ledgertest.With(ledgertest.V7(time.Now()), ledgertest.Add(fmt.Sprint("views/", i%7), 1))
		}
		if round != 3 { // after which it is not expected any more
			group[round*20] = known
		}
		verdicts, _, err := ledger.Commit(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range verdicts {
			want := counter.Applied
			if round > 0 && group[i].RequestID == known.RequestID {
				want = counter.Duplicate
			}
			if v.Outcome != want || v.Err != nil {
				t.Errorf("round %d, change %d: %+v, want outcome %d", round, i, v, want)
			}
		}
	}
	keys := []string{"views/known"}
	for i := range 7 {
		keys = append(keys, fmt.Sprint("views/", i))
	}
	counts, err := ledger.Counts(t.Context(), keys)
	if err != nil || counts[0].Value != 1 {
		t.Errorf("%+v, %v", counts, err)
	}
	sum := int64(0)
	for _, c := range counts[1:] {
		sum += c.Value
	}
	if want := int64(rounds*size - (rounds - 1)); sum != want {
		t.Errorf("the others add up to %d, want %d", sum, want)
	}
	ledgertest.Audit(t, openDB(t, "sqlite", path+"?_pragma=busy_timeout(5000)"))
}

// A change that would overflow now, but was counted when it did not, is a duplicate.
func TestSQLiteKnownIDOverflows(t *testing.T) {
	t.Parallel()
	ledger := openSQLite(t, filepath.Join(t.TempDir(), "plusone.db"), flush.SQLiteOptions{})
	change := ledgertest.With(ledgertest.V7(time.Now()), ledgertest.Add("views/a", 1<<63-1))
	for _, want := range []counter.Outcome{counter.Applied, counter.Duplicate} {
		verdicts, _, err := ledger.Commit(t.Context(), []counter.Change{change})
		if err != nil || verdicts[0] != (flush.Verdict{Outcome: want}) {
			t.Errorf("%+v, %v, want outcome %d", verdicts, err, want)
		}
	}
}

func TestSQLiteSettings(t *testing.T) {
	t.Parallel()
	ledger := openSQLite(t, filepath.Join(t.TempDir(), "plusone.db"), flush.SQLiteOptions{})
	same := settings(flush.ModeEmbedded)
	if err := ledger.EnsureSettings(t.Context(), same); err != nil {
		t.Errorf("same settings: %v", err)
	}
	other := same
	other.DedupeWindow = time.Hour
	var mismatch *flush.SettingsError
	if err := ledger.EnsureSettings(t.Context(), other); !errors.As(err, &mismatch) ||
		*mismatch != (flush.SettingsError{Name: "dedupe-window", Recorded: "5m0s", Wanted: "1h0m0s"}) {
		t.Errorf("other settings: %v", err)
	}
}

func BenchmarkSQLiteCommit(b *testing.B) {
	for _, n := range []int{1, 60, 300, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ledger := openSQLite(b, filepath.Join(b.TempDir(), "plusone.db"), flush.SQLiteOptions{})
			benchmarkCommit(b, ledger, n)
		})
	}
}

// benchmarkCommit commits groups of n changes, each with a request id and a key of its own.
func benchmarkCommit(b *testing.B, ledger flush.DirectLedger, n int) {
	for b.Loop() {
		b.StopTimer()
		group := make([]counter.Change, n)
		for i := range group {
			group[i] = ledgertest.With(ledgertest.V7(time.Now()), ledgertest.Add(fmt.Sprint("views/", i), 1))
		}
		b.StartTimer()
		if _, _, err := ledger.Commit(context.Background(), group); err != nil {
			b.Fatal(err)
		}
	}
}
