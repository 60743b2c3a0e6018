package flush_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
)

// auditInstance is a ledger to be audited.
type auditInstance struct {
	flush.AuditLedger
	DB *sql.DB
	// Use calls f with the ledger as a server uses it.
	Use      func(t *testing.T, f func(flush.DirectLedger))
	Mend     func(t *testing.T, keys ...string) flush.Repaired
	Settings flush.Settings
	// Over moves the history of all counters to the table history, as changes of other buckets do. History adds a row there, at
	// the given hour. Many, behind a table n of numbers i, add a counter and a like for each.
	Over    []string
	History string
	Many    []string
}

func auditLedgers(t *testing.T, f func(t *testing.T, a *auditInstance)) {
	t.Run("Postgres", func(t *testing.T) {
		t.Parallel()
		url := newPostgres(t, flush.ModeDirect)
		ledger := openPostgres(t, url)
		f(t, &auditInstance{
			AuditLedger: ledger, DB: openDB(t, "pgx", url), Settings: settings(flush.ModeDirect),
			Use: func(_ *testing.T, f func(flush.DirectLedger)) { f(ledger) },
			Mend: func(t *testing.T, keys ...string) flush.Repaired {
				repaired, err := ledger.Repair(t.Context(), keys, 0)
				must(t, err)
				return repaired
			},
			Over:    postgresOver,
			History: `INSERT INTO history (key, bucket, shard, delta) VALUES ($1, to_timestamp($2 * 3600), 0, $3)`,
			Many: []string{
				`INSERT INTO counters (key, shard, count, before_history, updated_at) SELECT 'many/' || i, 0, 1, 1, now() FROM n`,
				`INSERT INTO likes (key, actor, liked, at) SELECT 'liked/much', 'actor' || i, true, now() FROM n`,
			},
		})
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "plusone.db")
		use := func(t *testing.T, f func(flush.DirectLedger)) {
			ledger := openSQLite(t, path, flush.SQLiteOptions{})
			f(ledger)
			must(t, ledger.Close())
		}
		use(t, func(flush.DirectLedger) {})
		f(t, &auditInstance{
			AuditLedger: auditSQLite(t, path, false), DB: openDB(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)"),
			Settings: settings(flush.ModeEmbedded), Use: use,
			Mend: func(t *testing.T, keys ...string) flush.Repaired {
				ledger := auditSQLite(t, path, true)
				repaired, err := ledger.Repair(t.Context(), keys, 0)
				must(t, errors.Join(err, ledger.Close()))
				return repaired
			},
			Over: []string{
				`INSERT INTO history (key, bucket, delta) SELECT key, bucket, bucket_delta FROM counters WHERE key = 'K'`,
				`UPDATE counters SET bucket = NULL, bucket_delta = 0 WHERE key = 'K'`,
			},
			History: `INSERT INTO history (key, bucket, delta) VALUES ($1, $2 * 3600000, $3)`,
			Many: []string{
				`INSERT INTO counters (key, count, before_history, updated_at) SELECT 'many/' || i, 1, 1, 0 FROM n`,
				`INSERT INTO likes (key, actor, liked, at) SELECT 'liked/much', 'actor' || i, 1, i FROM n`,
			},
		})
	})
}

var postgresOver = []string{
	`INSERT INTO history (key, bucket, shard, delta) SELECT key, bucket, shard, bucket_delta FROM counters WHERE bucket_delta <> 0`,
	`UPDATE counters SET bucket = NULL, bucket_delta = 0`,
}

func auditSQLite(t testing.TB, path string, repair bool) *flush.SQLiteAudit {
	t.Helper()
	ledger, err := flush.AuditSQLite(t.Context(), path, repair, flush.SQLiteOptions{DedupeWindow: ledgertest.Dedupe})
	must(t, err)
	t.Cleanup(func() { must(t, ledger.Close()) })
	return ledger
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// audit compares the whole ledger.
func audit(t testing.TB, ledger flush.AuditLedger) (counters, pages int, found []flush.Difference) {
	t.Helper()
	for after := ""; pages == 0 || after != ""; pages++ {
		page, err := ledger.Compare(context.WithoutCancel(t.Context()), after)
		must(t, err)
		counters += page.Counters
		found = append(found, page.Differences...)
		after = page.Next
	}
	return counters, pages, found
}

func finds(t testing.TB, ledger flush.AuditLedger, want ...flush.Difference) {
	t.Helper()
	if _, _, got := audit(t, ledger); !reflect.DeepEqual(got, want) {
		t.Fatalf("the audit finds %+v, want %+v", got, want)
	}
}

func commit(t testing.TB, ledger flush.DirectLedger, changes ...counter.Change) {
	t.Helper()
	verdicts, _, err := ledger.Commit(context.WithoutCancel(t.Context()), changes)
	must(t, err)
	for _, v := range verdicts {
		must(t, v.Err)
	}
}

func like(key, actor string, action counter.LikeAction) counter.Change {
	return counter.Change{Entries: []counter.Entry{{Key: key}}, Actor: actor, Like: action}
}

// auditCases plant differences in what the ledger holds of the key K: 100 from before its history, 5 by increments, and
// likes of ann and ben; cy has taken his back.
var auditCases = []struct {
	name    string
	plant   []string
	history []int64 // rows added, an hour each
	want    []flush.Difference
	// impossible differences are left by a repair.
	impossible bool
	// count and likes are what is read after the repair.
	count, likes int64
}{
	{"nothing", nil, nil, nil, false, 107, 2},
	{"count", []string{`UPDATE counters SET count = 3 WHERE key = 'K'`}, nil, differs("count 3 107"), false, 107, 2},
	{
		"count far off",
		[]string{`UPDATE counters SET count = -9223372036854775808, before_history = 9223372036854775000 WHERE key = 'K'`},
		nil, differs("count -9223372036854775808 9223372036854775007"), false, 9223372036854775007, 2,
	},
	{"before history", []string{`UPDATE counters SET before_history = 99 WHERE key = 'K'`}, nil, differs("count 107 106"), false, 106, 2},
	{"likes", []string{`UPDATE counters SET likes = 3 WHERE key = 'K'`}, nil, differs("likes 3 2"), false, 107, 2},
	{
		"count and likes",
		[]string{`UPDATE counters SET count = 1, likes = -1 WHERE key = 'K'`},
		nil,
		differs("count 1 107", "likes -1 2"), false, 107, 2,
	},
	{"total lost", []string{`DELETE FROM counters WHERE key = 'K'`}, nil, differs("count none 7", "likes none 2"), false, 7, 2},
	{"history lost", []string{`DELETE FROM history WHERE key = 'K'`}, nil, differs("count 107 100"), false, 100, 2},
	{"history added", nil, []int64{-5, 2}, differs("count 107 104"), false, 104, 2},
	{
		"history alone",
		[]string{`DELETE FROM counters WHERE key = 'K'`, `DELETE FROM likes WHERE key = 'K'`, `DELETE FROM history WHERE key = 'K'`},
		[]int64{1, -1},
		differs("count none 0"), false, 0, 0,
	},
	{"like lost", []string{`DELETE FROM likes WHERE key = 'K' AND actor = 'ann'`}, nil, differs("likes 2 1"), false, 107, 1},
	{"like added", []string{`INSERT INTO likes (key, actor, liked, at) SELECT key, 'dan', liked, at FROM likes WHERE key = 'K' AND actor = 'ben'`}, nil, differs("likes 2 3"), false, 107, 3},
	{"like flipped", []string{`UPDATE likes SET liked = NOT liked WHERE key = 'K' AND actor = 'cy'`}, nil, differs("likes 2 3"), false, 107, 3},
	{
		"likes alone",
		[]string{`DELETE FROM counters WHERE key = 'K'`, `DELETE FROM history WHERE key = 'K'`},
		nil,
		differs("likes none 2"), false, 0, 2,
	},
	{
		"unliked alone",
		[]string{`DELETE FROM counters WHERE key = 'K'`, `DELETE FROM history WHERE key = 'K'`, `DELETE FROM likes WHERE key = 'K' AND actor <> 'cy'`},
		nil, nil, false, 0, 0,
	},
	{
		"beyond int64",
		[]string{`UPDATE counters SET likes = 0 WHERE key = 'K'`},
		[]int64{1<<63 - 1, 1<<63 - 1},
		differs("count 107 18446744073709551721", "likes 0 2"), true, 107, 2,
	},
	{
		"below int64", nil,
		[]int64{-1 << 63, -1 << 63, -1},
		differs("count 107 -18446744073709551510"), true, 107, 2,
	},
}

// differs makes differences of a few words each: subject, total and rows.
func differs(texts ...string) []flush.Difference {
	var list []flush.Difference
	for _, text := range texts {
		words := strings.Fields(strings.Replace(text, "none", "-", 1))
		list = append(list, flush.Difference{Subject: flush.Subject(words[0]), Total: words[1], Rows: words[2]})
		if words[1] == "-" {
			list[len(list)-1].Total = ""
		}
	}
	return list
}

// TestAudit plants each kind of difference and repairs it.
func TestAudit(t *testing.T) {
	t.Parallel()
	auditLedgers(t, func(t *testing.T, a *auditInstance) {
		for i, test := range auditCases {
			t.Run(test.name, func(t *testing.T) {
				key := fmt.Sprintf("case/%d", i)
				a.Use(t, func(ledger flush.DirectLedger) {
					commit(t, ledger, ledgertest.Add(key, 5), like(key, "ann", counter.SetLiked), like(key, "cy", counter.SetLiked))
					commit(t, ledger, like(key, "ben", counter.SetLiked), like(key, "cy", counter.SetUnliked))
				})
				plant(t, a, key, `UPDATE counters SET count = count + 100, before_history = before_history + 100 WHERE key = 'K'`)
				finds(t, a)
				plant(t, a, key, a.Over...)
				finds(t, a)
				plant(t, a, key, test.plant...)
				for hour, delta := range test.history {
					mustExec(t, a.DB, a.History, key, hour, delta)
				}
				var want, impossible []flush.Difference
				for i, d := range test.want {
					d.Key = key
					want = append(want, d)
					if i == 0 && test.impossible {
						impossible = append(impossible, d)
					}
				}
				finds(t, a, want...)
				wanted := flush.Repaired{Totals: want[len(impossible):], Impossible: impossible}
				if got := a.Mend(t, key, "case/unknown"); fmt.Sprint(got) != fmt.Sprint(wanted) {
					t.Errorf("repaired %+v, want %+v", got, wanted)
				}
				finds(t, a, impossible...)
				a.Use(t, func(ledger flush.DirectLedger) {
					counts, err := ledger.Counts(t.Context(), []string{key})
					must(t, err)
					if got := counts[0]; got.Value != test.count || got.Likes != test.likes {
						t.Errorf("count is %d with %d likes, want %d with %d", got.Value, got.Likes, test.count, test.likes)
					}
				})
				if test.impossible {
					plant(t, a, key, `DELETE FROM counters WHERE key = 'K'`, `DELETE FROM history WHERE key = 'K'`, `DELETE FROM likes WHERE key = 'K'`)
				}
			})
		}
	})
}

func plant(t testing.TB, a *auditInstance, key string, statements ...string) {
	t.Helper()
	for _, s := range statements {
		mustExec(t, a.DB, strings.ReplaceAll(s, "'K'", "'"+key+"'"))
	}
}

// Pages end between keys, wherever the rows of one are many, and nothing is left out.
func TestAuditPages(t *testing.T) {
	t.Parallel()
	auditLedgers(t, func(t *testing.T, a *auditInstance) {
		for _, statement := range a.Many {
			mustExec(t, a.DB, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) `+statement)
		}
		for hour := range 3 {
			mustExec(t, a.DB, a.History, "zz/history", hour, 1)
		}
		mustExec(t, a.DB, `UPDATE counters SET count = 2 WHERE key IN ('many/1', 'many/12000', 'many/9999')`)
		want := []flush.Difference{
			{Subject: flush.OfLikes, Key: "liked/much", Rows: "12000"},
			{Subject: flush.OfCount, Key: "many/1", Total: "2", Rows: "1"},
			{Subject: flush.OfCount, Key: "many/12000", Total: "2", Rows: "1"},
			{Subject: flush.OfCount, Key: "many/9999", Total: "2", Rows: "1"},
			{Subject: flush.OfCount, Key: "zz/history", Rows: "3"},
		}
		counters, pages, got := audit(t, a)
		if counters != 12_000 || pages < 2 || !reflect.DeepEqual(got, want) {
			t.Errorf("%d counters on %d pages, with %+v, want %+v", counters, pages, got, want)
		}
	})
}

// An audit of a ledger that was not migrated, or belongs to other settings, says so and writes nothing.
func TestAuditChecksSettings(t *testing.T) {
	t.Parallel()
	auditLedgers(t, func(t *testing.T, a *auditInstance) {
		must(t, a.CheckSettings(t.Context(), a.Settings))
		other := a.Settings
		other.DedupeWindow++
		var mismatch *flush.SettingsError
		if err := a.CheckSettings(t.Context(), other); !errors.As(err, &mismatch) || mismatch.Name != "dedupe-window" {
			t.Errorf("other settings: %v", err)
		}
		check := func(want string, statements ...string) {
			t.Helper()
			for _, s := range statements {
				mustExec(t, a.DB, s)
			}
			if err := a.CheckSettings(t.Context(), a.Settings); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("after %v: %v, want an error with %q", statements, err, want)
			}
		}
		check("run plusone migrate first", `DELETE FROM plusone_migrations WHERE version_id > 1`)
		check("use the program that migrated it", `INSERT INTO plusone_migrations (version_id, is_applied) VALUES (1000, true)`)
		check("there is no ledger yet", `DELETE FROM plusone_migrations WHERE version_id > 0`)
		check("there is no ledger yet", `DROP TABLE plusone_migrations`)
	})
}

// While changes are committed, the audit finds no difference; planted ones are repaired, and nothing that is
// committed meanwhile is lost.
func TestAuditUnderLoad(t *testing.T) {
	t.Parallel()
	const keys, writers, repairs = 20, 4, 20
	url := newPostgres(t, flush.ModeDirect)
	ledger, db := openPostgres(t, url), openDB(t, "pgx", url)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var group sync.WaitGroup
	var committed [writers]int64 // increments of each key
	for w := range writers {
		server := openPostgres(t, url)
		group.Go(func() {
			for n := int64(0); ctx.Err() == nil; n++ {
				changes := make([]counter.Change, 0, 2*keys)
				for k := range keys {
					key, actor := fmt.Sprint("live/", k), fmt.Sprintf("actor/%d", (n+int64(w))%7)
					changes = append(changes, ledgertest.Add(key, 1), like(key, actor, counter.SetLiked+counter.LikeAction(n/7%2)))
				}
				if _, _, err := server.Commit(context.WithoutCancel(ctx), changes); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
				committed[w]++
			}
		})
	}
	for range 50 {
		finds(t, ledger)
	}
	for n := range repairs {
		key := fmt.Sprint("live/", n%keys)
		mustExec(t, db, `UPDATE counters SET count = count + 1000, likes = likes - 1 WHERE key = $1`, key)
		repaired, err := ledger.Repair(t.Context(), []string{key}, 0)
		must(t, err)
		if len(repaired.Totals) != 2 {
			t.Errorf("repaired %+v", repaired)
		}
		finds(t, ledger)
	}
	stop()
	group.Wait()
	finds(t, ledger)
	want := int64(0)
	for _, n := range committed {
		want += n
	}
	counts, err := ledger.Counts(t.Context(), []string{"live/0", "live/19"})
	must(t, err)
	for _, got := range counts {
		if got.Value-got.Likes != want || got.Likes < 0 || got.Likes > 7 {
			t.Errorf("%s counts %d with %d likes, want %d besides them", got.Key, got.Value, got.Likes, want)
		}
	}
}
