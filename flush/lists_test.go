package flush_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/flush"
)

// TestPostgresListsUseTheirIndex asks for the plans of pages of long lists: each follows an index from the place where
// the page begins, and reads no more than the page. The prepared statements of the ledger may get a plan for any
// parameters, so those are the ones asked for.
func TestPostgresListsUseTheirIndex(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeDirect)
	db := openDB(t, "pgx", url)
	mustExec(t, db, `INSERT INTO likes (key, actor, liked, at)
		SELECT k, a, i % 10 > 0, '2030-01-01'::timestamptz + (i * 7919) % 10007 * interval '1 second'
		FROM generate_series(1, 20000) AS i,
		LATERAL (VALUES ('hot', 'actor-' || i), ('key-' || i, 'fan'), ('key-' || i % 500, 'actor-' || i)) AS pair (k, a)`)
	for i := range 16 { // as autovacuum does: it leaves the table itself out
		mustExec(t, db, fmt.Sprintf(`ANALYZE likes_%02d`, i))
	}
	for name, query := range flush.ListStatements {
		of := "'hot'"
		if strings.HasSuffix(name, "liked") {
			of = "'fan'"
		}
		types, args := "text, int", of+", 100"
		if strings.HasPrefix(name, "more") {
			types += ", timestamptz, text"
			args += ", '2030-01-01 01:00+00', 'm'"
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			plan := explain(t, db, "("+types+") AS "+query, args, mode)
			for _, wrong := range []string{"Seq Scan", "->  Sort", "Incremental Sort", "Bitmap", "Filter"} {
				if strings.Contains(plan, wrong) {
					t.Errorf("%s, %s: the plan has a %s:\n%s", name, mode, wrong, plan)
				}
			}
			if strings.HasPrefix(name, "more") && !strings.Contains(plan, "ROW(") {
				t.Errorf("%s, %s: the index is not entered at the place asked for:\n%s", name, mode, plan)
			}
		}
	}
}

// TestPostgresLikesAreFoundInTheirIndex: the state of a pair is looked up by the pair, however many likes the key or the
// actor has.
func TestPostgresLikesAreFoundInTheirIndex(t *testing.T) {
	t.Parallel()
	db := openDB(t, "pgx", newPostgres(t, flush.ModeSharded))
	check := func(what string) {
		for types, query := range flush.LikesStatements {
			args := `'hot', ARRAY['new-1', 'actor-7', 'new-2', 'actor-8']`
			if types == "text[], text[]" {
				args = `ARRAY['hot', 'hot', 'hot', 'key-1'], ARRAY['new-1', 'actor-7', 'new-2', 'fan']`
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				plan := explain(t, db, "("+types+") AS "+query, args, mode)
				if strings.Contains(plan, "Seq Scan on likes") || strings.Contains(plan, "Filter") || !strings.Contains(plan, "_pkey") {
					t.Errorf("%s, %s, %s: the plan reads more than the pairs:\n%s", what, types, mode, plan)
				}
			}
		}
	}
	check("empty")
	mustExec(t, db, `INSERT INTO likes (key, actor, liked, at)
		SELECT k, a, i % 10 > 0, '2030-01-01'::timestamptz + i * interval '1 second'
		FROM generate_series(1, 20000) AS i, LATERAL (VALUES ('hot', 'actor-' || i), ('key-' || i, 'fan')) AS pair (k, a)`)
	check("not analysed")
	for i := range 16 {
		mustExec(t, db, fmt.Sprintf(`ANALYZE likes_%02d`, i))
	}
	check("analysed")
}

// explain prepares a statement and returns how it is executed.
func explain(t *testing.T, db *sql.DB, statement, args, mode string) string {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, s := range []string{`SET plan_cache_mode = ` + mode, `PREPARE page ` + statement} {
		if _, err := conn.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if _, err := conn.ExecContext(t.Context(), `DEALLOCATE page`); err != nil {
			t.Error(err)
		}
	}()
	rows, err := conn.QueryContext(t.Context(), fmt.Sprintf(`EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE page (%s)`, args))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
