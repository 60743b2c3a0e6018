package flush_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
)

// commitOne returns the verdict on one change.
func commitOne(t *testing.T, ledger *flush.SQLite, change counter.Change) flush.Verdict {
	t.Helper()
	verdicts, _, err := ledger.Commit(t.Context(), []counter.Change{change})
	if err != nil {
		t.Fatal(err)
	}
	return verdicts[0]
}

func mustPrune(t *testing.T, ledger *flush.SQLite) {
	t.Helper()
	if _, err := ledger.PruneClaims(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
}

// A process starts by a clock that is two hours ahead, and is set right: new ids are accepted, and those that were counted
// before are not counted again.
func TestSQLiteClockSetBack(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	path := filepath.Join(t.TempDir(), "plusone.db")
	made := func(ago time.Duration) counter.Change {
		return ledgertest.With(ledgertest.V7(clock.now().Add(-ago)), ledgertest.Add("views/a", 1))
	}
	old := made(20 * time.Second)
	oldOnce, newOnce := ledgertest.Once("ann", time.Hour, made(10*time.Second)), ledgertest.Once("ann", time.Hour, made(5*time.Second))
	before := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now})
	for _, change := range []counter.Change{old, oldOnce} {
		if v := commitOne(t, before, change); v != (flush.Verdict{Outcome: counter.Applied}) {
			t.Fatalf("%+v", v)
		}
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	clock.advance(2 * time.Hour)
	var log bytes.Buffer
	ledger := openSQLite(t, path, flush.SQLiteOptions{Clock: clock.now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	commitOne(t, ledger, ledgertest.Add("views/a", 1))
	mustPrune(t, ledger)
	clock.advance(-2 * time.Hour)

	change := made(0)
	for _, want := range []counter.Outcome{counter.Applied, counter.Duplicate, counter.Duplicate} {
		if v := commitOne(t, ledger, change); v != (flush.Verdict{Outcome: want}) {
			t.Errorf("a new id: %+v, want outcome %d", v, want)
		}
		if known, err := ledger.Repeated(t.Context(), change); !known || err != nil {
			t.Errorf("a new id is known: %v, %v", known, err)
		}
		mustPrune(t, ledger)
		clock.advance(time.Minute)
	}
	for what, change := range map[string]counter.Change{"id": old, "actor": newOnce} {
		if v := commitOne(t, ledger, change); !errors.Is(v.Err, counter.ErrRequestIDExpired) {
			t.Errorf("an %s that was counted and is forgotten: %+v, want ErrRequestIDExpired", what, v)
		}
	}
	if _, err := ledger.Repeated(t.Context(), old); !errors.Is(err, counter.ErrRequestIDExpired) {
		t.Errorf("an id that was counted and is forgotten is known: %v", err)
	}
	if n := strings.Count(log.String(), "the clock was set back"); n != 1 {
		t.Errorf("the log tells %d times of the clock: %s", n, log.String())
	}
}

// Whatever the clock does, no id is counted twice, nor an actor twice in a period of ids.
func TestSQLiteClockMovesAtRandom(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	clock := newTestClock()
	ledger := openSQLite(t, filepath.Join(t.TempDir(), "plusone.db"), flush.SQLiteOptions{Clock: clock.now, Logger: slog.New(slog.DiscardHandler)})
	const period = 10 * time.Minute
	steps := []time.Duration{time.Second, time.Minute, 3 * time.Minute, 20 * time.Minute, -time.Minute, -15 * time.Minute}
	applied, periods := make(map[counter.RequestID]int), make(map[int64]int)
	var changes []counter.Change
	for range 2000 {
		switch random.IntN(4) {
		case 0:
			clock.advance(steps[random.IntN(len(steps))])
		case 1:
			mustPrune(t, ledger)
		case 2:
			id := ledgertest.V7(clock.now().Add(time.Duration(random.IntN(400)-360) * time.Second))
			change := ledgertest.With(id, ledgertest.Add("views/a", 1))
			if random.IntN(2) == 0 {
				change = ledgertest.Once("ann", period, change)
			}
			changes = append(changes, change)
		}
		if len(changes) == 0 {
			continue
		}
		change := changes[max(0, len(changes)-1-random.IntN(50))]
		if commitOne(t, ledger, change).Outcome != counter.Applied {
			continue
		}
		if applied[change.RequestID]++; applied[change.RequestID] > 1 {
			t.Fatal("an id was counted twice")
		}
		if change.OncePer == 0 {
			continue
		}
		at, _ := change.RequestID.Time()
		start := counter.PeriodStart(at, period)
		if periods[start]++; periods[start] > 1 {
			t.Fatal("an actor was counted twice")
		}
	}
	if len(applied) < 10 {
		t.Errorf("only %d of %d ids were counted", len(applied), len(changes))
	}
}
