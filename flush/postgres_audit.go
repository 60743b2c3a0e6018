package flush

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/shard"
)

var _ AuditLedger = (*Postgres)(nil)

const (
	// The first key whose rows are not all among the next $2 of a table, or none.
	auditPageSQL = `
SELECT min(key) FROM (
    (SELECT key FROM counters WHERE key > $1 ORDER BY key OFFSET $2 LIMIT 1)
    UNION ALL (SELECT key FROM history WHERE key > $1 ORDER BY key OFFSET $2 LIMIT 1)
    UNION ALL (SELECT key FROM likes WHERE key > $1 ORDER BY key OFFSET $2 LIMIT 1)
) AS ends`

	// One statement, so one snapshot. The row without a key says how many counters there are.
	compareSQL = `
WITH c AS MATERIALIZED (
    SELECT key, shard, count, likes, before_history + bucket_delta AS rows FROM counters WHERE %[1]s
), h AS MATERIALIZED (
    SELECT key, shard, sum(delta) AS delta FROM history WHERE %[1]s GROUP BY key, shard
), k AS MATERIALIZED (
    SELECT key, sum(likes) AS likes FROM c GROUP BY key
), l AS MATERIALIZED (
    SELECT key, count(*) AS liked FROM likes WHERE liked AND %[1]s GROUP BY key
)
SELECT key, 'count' AS subject, shard, c.count::text AS total, (coalesce(c.rows, 0) + coalesce(h.delta, 0))::text AS rows
FROM c FULL JOIN h USING (key, shard)
WHERE c.count IS DISTINCT FROM coalesce(c.rows, 0) + coalesce(h.delta, 0)
UNION ALL
SELECT key, 'likes', 0, k.likes::text, coalesce(l.liked, 0)::text
FROM k FULL JOIN l USING (key)
WHERE coalesce(k.likes, 0) <> coalesce(l.liked, 0)
UNION ALL
SELECT NULL, '', 0, count(*)::text, '0' FROM k`

	// Repairs exclude each other, but not anybody else.
	lockRepairSQL = `SELECT pg_try_advisory_xact_lock('counters'::regclass::oid::int, 0)`

	// Locks the rows, in their order, and makes those that are not there.
	lockTotalsSQL = `
INSERT INTO counters AS c (key, shard, updated_at)
SELECT u.key, u.shard, now() FROM unnest($1::text[], $2::smallint[]) AS u (key, shard)
ON CONFLICT (key, shard) DO UPDATE SET updated_at = excluded.updated_at WHERE false`

	correctTotalsSQL = `
UPDATE counters AS c SET count = c.count + u.count::numeric, likes = c.likes + u.likes::numeric, updated_at = now()
FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[]) AS u (key, shard, count, likes)
WHERE c.key = u.key COLLATE "C" AND c.shard = u.shard`
)

var (
	comparePageSQL = fmt.Sprintf(compareSQL, `key > $1 AND key <= $2`)
	compareKeysSQL = fmt.Sprintf(compareSQL, `key = ANY ($1::text[])`)
)

// keysCompared is how many keys Repair compares at a time: any of them may have many rows.
const keysCompared = 500

// auditPlan has each statement planned for its own parameters: a plan for any range of keys might read whole tables.
const auditPlan = pgx.QueryExecModeCacheDescribe

var errRepairUnderWay = errors.New("another repair of the ledger is under way")

// CheckSettings implements AuditLedger.
func (p *Postgres) CheckSettings(ctx context.Context, want Settings) error {
	var there bool
	if err := p.pool.QueryRow(ctx, `SELECT to_regclass('`+migrationsTable+`') IS NOT NULL`).Scan(&there); err != nil {
		return postgresError("read settings", err)
	}
	if !there {
		return errNoLedger
	}
	var version int64
	err := p.pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+migrationsTable+` WHERE is_applied`).Scan(&version)
	if err != nil {
		return postgresError("read settings", err)
	}
	if err := checkSchema(version, "postgres"); err != nil {
		return err
	}
	rows, err := p.pool.Query(ctx, `SELECT name, value FROM settings`)
	if err != nil {
		return postgresError("read settings", err)
	}
	recorded := make(map[string]string)
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { recorded[name] = value; return nil }); err != nil {
		return postgresError("read settings", err)
	}
	if len(recorded) == 0 {
		return errNoLedger
	}
	return want.check(recorded)
}

// Compare implements AuditLedger.
func (p *Postgres) Compare(ctx context.Context, after string) (Comparison, error) {
	var next *string
	if err := p.pool.QueryRow(ctx, auditPageSQL, auditPlan, after, auditPageRows).Scan(&next); err != nil {
		return Comparison{}, postgresError("compare totals", err)
	}
	last := afterAllKeys
	var page Comparison
	if next != nil {
		last, page.Next = *next, *next
	}
	rows, err := p.pool.Query(ctx, comparePageSQL, auditPlan, after, last)
	if err != nil {
		return Comparison{}, postgresError("compare totals", err)
	}
	if page.Counters, page.Differences, err = scanDifferences(rows); err != nil {
		return Comparison{}, postgresError("compare totals", err)
	}
	return page, nil
}

// scanDifferences reads the answer to compareSQL.
func scanDifferences(rows pgx.Rows) (counters int, found []Difference, err error) {
	var key, total *string
	var d Difference
	_, err = pgx.ForEachRow(rows, []any{&key, &d.Subject, &d.Shard, &total, &d.Rows}, func() error {
		d.Total = ""
		if total != nil {
			d.Total = *total
		}
		if key == nil {
			_, err := fmt.Sscan(d.Total, &counters)
			return err
		}
		d.Key = *key
		found = append(found, d)
		return nil
	})
	slices.SortFunc(found, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Shard, b.Shard))
	})
	return counters, found, err
}

// Repair implements AuditLedger.
//
// What a total lacks is the same in every snapshot, since every other transaction changes total and rows
// by the same. So it is found without locking anything, and then added to what the total has become. A transaction that has
// written likes and not yet totals, or the other way round, is either not in the snapshot at all and adds its part
// later, or is there as a whole. Only a second repair would add the same again: repairs exclude each other.
func (p *Postgres) Repair(ctx context.Context, keys []string, shards int) (Repaired, error) {
	if len(keys) > MaxRepair {
		return Repaired{}, fmt.Errorf("repair of %d keys, at most %d", len(keys), MaxRepair)
	}
	for attempt := 1; ; attempt++ {
		repaired, err := p.repair(ctx, keys, shards)
		if err == nil || attempt == maxAttempts || !isConflict(err) {
			return repaired, err
		}
	}
}

func (p *Postgres) repair(ctx context.Context, keys []string, shards int) (Repaired, error) {
	var alone bool
	batch := &pgx.Batch{}
	batch.Queue(lockRepairSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&alone) })
	tx, err := p.begin(ctx, batch)
	if err != nil {
		return Repaired{}, postgresError("repair", err)
	}
	defer tx.end(ctx)
	if !alone {
		return Repaired{}, errRepairUnderWay
	}

	var repaired Repaired
	lacking := make(map[totalRow]*lack)
	for chunk := range slices.Chunk(keys, keysCompared) {
		rows, err := tx.conn.Query(ctx, compareKeysSQL, auditPlan, chunk)
		if err != nil {
			return Repaired{}, postgresError("repair", err)
		}
		_, found, err := scanDifferences(rows)
		if err != nil {
			return Repaired{}, postgresError("repair", err)
		}
		for _, d := range found {
			if err := addLack(lacking, &repaired, d, shards); err != nil {
				return Repaired{}, err
			}
		}
	}
	for chunk := range slices.Chunk(sortedRows(lacking), rowsPerStatement) {
		batch := &pgx.Batch{}
		queueCorrection(batch, chunk, lacking)
		if err := tx.send(ctx, batch); err != nil {
			return Repaired{}, postgresError("repair", err)
		}
	}
	if err := tx.commit(ctx, &pgx.Batch{}); err != nil {
		return Repaired{}, commitError("repair", err)
	}
	return repaired, nil
}

// totalRow names a row of counters.
type totalRow struct {
	key   string
	shard int
}

// lack is what must be added to a row.
type lack struct{ count, likes big.Int }

// addLack notes what a difference means for a row, and in repaired what will become of it.
func addLack(lacking map[totalRow]*lack, repaired *Repaired, d Difference, shards int) error {
	lacks, possible, err := d.lacks()
	if err != nil {
		return err
	}
	if !possible {
		repaired.Impossible = append(repaired.Impossible, d)
		return nil
	}
	row := totalRow{d.Key, d.Shard}
	if d.Subject == OfLikes {
		row.shard = shard.Home(d.Key, max(shards, 1))
	}
	at := lacking[row]
	if at == nil {
		at = new(lack)
		lacking[row] = at
	}
	if d.Subject == OfLikes {
		at.likes = *lacks
	} else {
		at.count = *lacks
	}
	repaired.Totals = append(repaired.Totals, d)
	return nil
}

// lacks is what the total lacks, and whether a total can hold what the rows add up to.
func (d *Difference) lacks() (lacks *big.Int, possible bool, err error) {
	total, rows := new(big.Int), new(big.Int)
	if _, ok := total.SetString(cmp.Or(d.Total, "0"), 10); !ok {
		return nil, false, fmt.Errorf("repair: total %q is no number", d.Total)
	}
	if _, ok := rows.SetString(d.Rows, 10); !ok {
		return nil, false, fmt.Errorf("repair: sum %q is no number", d.Rows)
	}
	return total.Sub(rows, total), rows.IsInt64(), nil
}

func sortedRows(lacking map[totalRow]*lack) []totalRow {
	rows := make([]totalRow, 0, len(lacking))
	for row := range lacking {
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b totalRow) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.shard, b.shard))
	})
	return rows
}

// queueCorrection locks rows, which are sorted, and adds what they lack.
func queueCorrection(batch *pgx.Batch, rows []totalRow, lacking map[totalRow]*lack) {
	keys, shards := make([]string, len(rows)), make([]int16, len(rows))
	counts, likes := make([]string, len(rows)), make([]string, len(rows))
	for i, row := range rows {
		keys[i], shards[i] = row.key, int16(row.shard)
		counts[i], likes[i] = lacking[row].count.String(), lacking[row].likes.String()
	}
	batch.Queue(lockTotalsSQL, keys, shards)
	batch.Queue(correctTotalsSQL, keys, shards, counts, likes)
}
