package flush_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
)

// histories tells the history of keys by their beginning, and of those that turn by what it is set to.
type histories struct{ turning atomic.Value }

func newHistories() *histories {
	h := &histories{}
	h.turning.Store(flush.HistoryNone)
	return h
}

func (h *histories) of(key string) flush.History {
	start, _, _ := strings.Cut(key, "/")
	switch start {
	case "turning":
		return h.turning.Load().(flush.History) //nolint:errcheck // it holds nothing else
	case "own":
		return ""
	default:
		return flush.History(start)
	}
}

// Keys with histories of their own are kept apart in one transaction, whatever they change to in between, and what is
// counted always adds up.
func TestHistoryOfKeys(t *testing.T) {
	t.Parallel()
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	keys := []string{"none/a", "hour/a", "minute/a", "own/a", "turning/a"}
	turns := []flush.History{flush.HistoryNone, flush.HistoryMinute, flush.HistoryNone, flush.HistoryHour, flush.HistoryMinute, flush.HistoryNone}
	postgres := func(t *testing.T, url string, of flush.HistoryOf) *flush.Postgres {
		ledger, err := flush.OpenPostgres(t.Context(), url, flush.PostgresOptions{
			History: flush.HistoryMinute, HistoryOf: of, DedupeWindow: ledgertest.Dedupe, MaxConns: 6,
		})
		must(t, err)
		t.Cleanup(ledger.Close)
		return ledger
	}
	type rows func(query string) int
	check := func(t *testing.T, audit flush.AuditLedger, count rows, round int) {
		t.Helper()
		finds(t, audit)
		for _, start := range []string{"none", "hour", "minute", "own"} { // an hour, or a minute, may end meanwhile
			got := count("SELECT count(*) FROM counter_history WHERE key = '" + start + "/a'")
			if kept := start != "none"; kept != (got > 0) || got > 2 {
				t.Errorf("round %d: %s has %d rows of history", round, start, got)
			}
		}
		if got := count("SELECT before_history FROM counters WHERE key = 'none/a'"); got != round {
			t.Errorf("round %d: before history there are %d", round, got)
		}
	}
	direct := func(t *testing.T, ledger flush.DirectLedger, audit flush.AuditLedger, h *histories, count rows) {
		for i, turn := range turns {
			h.turning.Store(turn)
			changes := make([]counter.Change, 0, len(keys)+1)
			for _, key := range keys {
				changes = append(changes, ledgertest.Add(key, 1))
			}
			commit(t, ledger, append(changes, like("turning/a", string(rune('a'+i)), counter.SetLiked))...)
			check(t, audit, count, i+1)
		}
		if got := count("SELECT before_history FROM counters WHERE key = 'turning/a'"); got != 6 { // of 3 rounds
			t.Errorf("the key that turns has %d before history, want 6", got)
		}
	}

	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		h := newHistories()
		path := filepath.Join(t.TempDir(), "plusone.db")
		ledger := openSQLite(t, path, flush.SQLiteOptions{History: flush.HistoryMinute, HistoryOf: h.of, Clock: func() time.Time { return at }})
		db := openDB(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)")
		direct(t, ledger, auditSQLite(t, path, false), h, func(query string) (n int) {
			must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
			return n
		})
	})
	t.Run("Postgres", func(t *testing.T) {
		t.Parallel()
		h := newHistories()
		url := newPostgres(t, flush.ModeDirect)
		ledger := postgres(t, url, h.of)
		db := openDB(t, "pgx", url)
		direct(t, ledger, ledger, h, func(query string) (n int) {
			must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
			return n
		})
	})
	t.Run("Windows", func(t *testing.T) {
		t.Parallel()
		h := newHistories()
		url := newPostgres(t, flush.ModeSharded)
		ledger := postgres(t, url, h.of)
		db := openDB(t, "pgx", url)
		for i, turn := range turns {
			h.turning.Store(turn)
			deltas := make(map[string]int64, len(keys))
			for _, key := range keys {
				deltas[key] = 1
			}
			applied, err := ledger.Apply(context.Background(), window(0, at.UnixMilli()+int64(i), deltas))
			if err != nil || !applied.OK {
				t.Fatalf("%+v, %v", applied, err)
			}
			check(t, ledger, func(query string) (n int) {
				must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
				return n
			}, i+1)
		}
	})
}
