package flush

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strconv"
)

// SQLiteAudit is the ledger in a file, opened to be audited.
type SQLiteAudit struct {
	readers *sql.DB
	ledger  *SQLite // nil if it is only read
}

var _ AuditLedger = (*SQLiteAudit)(nil)

var errReadOnly = errors.New("the ledger was opened to be read")

// AuditSQLite opens the ledger at path to be read, beside the process that uses it, or to be repaired, for which no
// other process may use it. It must be there.
func AuditSQLite(ctx context.Context, path string, repair bool, opts SQLiteOptions) (*SQLiteAudit, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	if repair {
		ledger, err := OpenSQLite(ctx, path, opts)
		if err != nil {
			return nil, fmt.Errorf("a repair needs the file for itself: %w", err)
		}
		return &SQLiteAudit{readers: ledger.readers, ledger: ledger}, nil
	}
	path, err := resolve(path)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	u := fileURL(path)
	u.RawQuery = "mode=ro&_pragma=busy_timeout(5000)&_pragma=query_only(1)"
	readers, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, sqliteError("open ledger", err)
	}
	readers.SetMaxOpenConns(1)
	return &SQLiteAudit{readers: readers}, nil
}

// Close closes the file.
func (s *SQLiteAudit) Close() error {
	if s.ledger != nil {
		return s.ledger.Close()
	}
	return s.readers.Close()
}

// CheckSettings implements AuditLedger.
func (s *SQLiteAudit) CheckSettings(ctx context.Context, want Settings) error {
	var tables int
	err := s.readers.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master WHERE name = ?`, migrationsTable).Scan(&tables)
	if err != nil {
		return sqliteError("read settings", err)
	}
	if tables == 0 {
		return errNoLedger
	}
	var version int64
	err = s.readers.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM `+migrationsTable+` WHERE is_applied`).Scan(&version)
	if err != nil {
		return sqliteError("read settings", err)
	}
	if err := checkSchema(version, "sqlite"); err != nil {
		return err
	}
	rows, err := s.readers.QueryContext(ctx, `SELECT name, value FROM settings`)
	if err != nil {
		return sqliteError("read settings", err)
	}
	recorded := make(map[string]string)
	var name, value string
	if err := forEachRow(rows, []any{&name, &value}, func() { recorded[name] = value }); err != nil {
		return sqliteError("read settings", err)
	}
	if len(recorded) == 0 {
		return errNoLedger
	}
	return want.check(recorded)
}

const (
	// The first key whose rows are not all among the next ?2 of a table, or none.
	sqliteAuditPageSQL = `
SELECT min(key) FROM (
    SELECT * FROM (SELECT key FROM counters WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2)
    UNION ALL SELECT * FROM (SELECT key FROM history WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2)
    UNION ALL SELECT * FROM (SELECT key FROM likes WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2)
)`

	// One statement, so one snapshot. Sums are made of halves, since those of whole numbers could overflow.
	sqliteCompareSQL = `
SELECT key, 'total', count, likes, before_history, bucket_delta FROM counters WHERE %[1]s
UNION ALL
SELECT key, 'history', sum(delta >> 32), sum(delta & 4294967295), 0, 0 FROM history WHERE %[1]s GROUP BY key
UNION ALL
SELECT key, 'likes', count(*), 0, 0, 0 FROM likes WHERE liked AND %[1]s GROUP BY key
ORDER BY key`

	sqliteRepairSQL = `
INSERT INTO counters (key, count, likes, updated_at) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET count = excluded.count, likes = excluded.likes, updated_at = excluded.updated_at`
)

var (
	sqliteComparePageSQL = fmt.Sprintf(sqliteCompareSQL, `key > ?1 AND key <= ?2`)
	sqliteCompareKeySQL  = fmt.Sprintf(sqliteCompareSQL, `key = ?1`)
)

// Compare implements AuditLedger.
func (s *SQLiteAudit) Compare(ctx context.Context, after string) (Comparison, error) {
	var next *string
	if err := s.readers.QueryRowContext(ctx, sqliteAuditPageSQL, after, auditPageRows).Scan(&next); err != nil {
		return Comparison{}, sqliteError("compare totals", err)
	}
	last := afterAllKeys
	var page Comparison
	if next != nil {
		last, page.Next = *next, *next
	}
	rows, err := s.readers.QueryContext(ctx, sqliteComparePageSQL, after, last)
	if err != nil {
		return Comparison{}, sqliteError("compare totals", err)
	}
	err = eachAccount(rows, func(a *account) {
		if a.counted {
			page.Counters++
		}
		page.Differences = append(page.Differences, a.differences()...)
	})
	if err != nil {
		return Comparison{}, sqliteError("compare totals", err)
	}
	return page, nil
}

// Repair implements AuditLedger. No one else writes to the file.
func (s *SQLiteAudit) Repair(ctx context.Context, keys []string, _ int) (Repaired, error) {
	if s.ledger == nil {
		return Repaired{}, errReadOnly
	}
	if len(keys) > MaxRepair {
		return Repaired{}, fmt.Errorf("repair of %d keys, at most %d", len(keys), MaxRepair)
	}
	var repaired Repaired
	err := s.ledger.update(ctx, "repair", func(ctx context.Context, w *sqliteWriter) error {
		repaired = Repaired{}
		w.known.forget()
		now := s.ledger.clock.now().UnixMilli()
		for _, key := range keys {
			rows, err := w.conn.QueryContext(ctx, sqliteCompareKeySQL, key)
			if err != nil {
				return err
			}
			var found account
			if err := eachAccount(rows, func(a *account) { found = *a }); err != nil {
				return err
			}
			if err := found.repair(ctx, w, now, &repaired); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Repaired{}, err
	}
	return repaired, nil
}

// account is what a SQLite ledger holds of a key.
type account struct {
	key string
	// counted says that the key has a total: count and likes.
	counted      bool
	count, likes int64
	historied    bool    // has a history
	rows         big.Int // before the history, and the history, in its total's row and others
	liked        int64   // rows
}

// eachAccount calls f for each key of an answer to sqliteCompareSQL.
func eachAccount(rows *sql.Rows, f func(*account)) error {
	a := &account{}
	var key, source string
	var v [4]int64
	err := forEachRow(rows, []any{&key, &source, &v[0], &v[1], &v[2], &v[3]}, func() {
		if key != a.key && a.key != "" {
			f(a)
			a = &account{}
		}
		a.key = key
		switch source {
		case "total":
			a.counted, a.count, a.likes = true, v[0], v[1]
			a.rows.Add(a.rows.Add(&a.rows, big.NewInt(v[2])), big.NewInt(v[3]))
		case "history":
			a.historied = true
			high := new(big.Int).Lsh(big.NewInt(v[0]), 32)
			a.rows.Add(&a.rows, high.Add(high, big.NewInt(v[1])))
		case "likes":
			a.liked = v[0]
		}
	})
	if err == nil && a.key != "" {
		f(a)
	}
	return err
}

func (a *account) differences() []Difference {
	var found []Difference
	total := func(n int64) string {
		if !a.counted {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	// Neither a history nor liked rows without a total is possible; unliked rows alone are.
	if a.counted && a.rows.Cmp(big.NewInt(a.count)) != 0 || a.historied && !a.counted {
		found = append(found, Difference{Subject: OfCount, Key: a.key, Total: total(a.count), Rows: a.rows.String()})
	}
	if a.liked != a.likes {
		found = append(found, Difference{Subject: OfLikes, Key: a.key, Total: total(a.likes), Rows: strconv.FormatInt(a.liked, 10)})
	}
	return found
}

// repair sets the total of a key to what its rows add up to.
func (a *account) repair(ctx context.Context, w *sqliteWriter, now int64, repaired *Repaired) error {
	count, changed := a.count, false
	for _, d := range a.differences() {
		if d.Subject == OfCount {
			if !a.rows.IsInt64() {
				repaired.Impossible = append(repaired.Impossible, d)
				continue
			}
			count = a.rows.Int64()
		}
		repaired.Totals, changed = append(repaired.Totals, d), true
	}
	if !changed {
		return nil
	}
	_, err := w.conn.ExecContext(ctx, sqliteRepairSQL, a.key, count, a.liked, now)
	return err
}
