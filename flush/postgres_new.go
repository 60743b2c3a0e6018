package flush

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
)

// commitNewSQL takes ids and adds sums, whose parameters are those of addSumsSQL, if all ids are new and none is too old or too
// early: by the ledger's clock, it is between $10 and $11. It says whether it did. Otherwise it changes nothing.
//
// Whether ids are new is asked as of the statement's snapshot. One that another transaction takes from then on is met by the unique key,
// whose error undoes all. That counters wait for the number of ids taken makes ids be locked first.
const commitNewSQL = `
WITH fresh AS (
    SELECT now() BETWEEN $10::timestamptz AND $11::timestamptz
        AND NOT EXISTS (SELECT FROM request_ids WHERE id = ANY ($8::bytea[])) AS yes
), ids AS (
    INSERT INTO request_ids (id, fingerprint, at)
    SELECT u.id, u.fingerprint, now() FROM unnest($8::bytea[], $9::bigint[]) AS u (id, fingerprint)
    WHERE (SELECT yes FROM fresh)
    RETURNING 1
), changed AS (` + sumsSQL + `
    WHERE (SELECT count(*) FROM ids) = cardinality($8::bytea[])` + addToRowsSQL + `
), moved AS (` + moveBucketsSQL + `
)
SELECT now(), yes FROM fresh`

// onlyIndexesSQL is for the plan of the next statement, which is kept: one made while there are no ids, or few, would read the whole
// table instead of looking ids up, when there are millions.
const onlyIndexesSQL = `SELECT set_config('enable_seqscan', 'off', true)`

// commitNew commits a group that has ids, and has no other claims and no likes, if it finds all of its ids new, in one round trip. If it
// does not, that is errKnownID, and nothing was changed.
func (p *Postgres) commitNew(ctx context.Context, g *group) ([]Verdict, time.Time, error) {
	d := g.decide(&standing{})
	rounds := d.sorted()
	if len(rounds) > 1 {
		return nil, time.Time{}, fmt.Errorf("%w, or sums are too large for one statement", errKnownID)
	}
	var sums deltas
	if len(rounds) == 1 {
		sums = rounds[0]
	}
	ids := g.claimIDs()
	from, to := acceptable(g.changes, g.dedupe)
	var now time.Time
	var fresh bool
	batch := &pgx.Batch{}
	batch.Queue(onlyIndexesSQL)
	batch.Queue(commitNewSQL, append(p.sumsArgs(sums, directShard, nil), idBytes(ids), g.printsOf(ids), from, to)...).QueryRow(
		func(row pgx.Row) error { return row.Scan(&now, &fresh) })

	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, time.Time{}, postgresError("commit", err)
	}
	defer conn.Release()
	sent := time.Now()
	failpoint.Hit(failpoint.DirectCommitBefore)
	switch err := conn.SendBatch(ctx, batch).Close(); {
	case hasCode(err, codeUniqueViolation):
		return nil, time.Time{}, fmt.Errorf("%w: %w", errKnownID, err)
	case err != nil:
		return nil, time.Time{}, commitError("commit", err)
	case !fresh:
		return nil, time.Time{}, errKnownID
	}
	failpoint.Hit(failpoint.DirectCommitAfter)
	return d.verdicts, asOf(now, sent), nil
}

// acceptable is the span of the ledger's clock in which no id of the changes is too old or too early.
func acceptable(changes []counter.Change, dedupe time.Duration) (from, to time.Time) {
	from, to = time.UnixMilli(0), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range changes {
		made, timed := changes[i].RequestID.Time()
		if !timed {
			continue
		}
		if earliest := time.UnixMilli(made).Add(-counter.MaxEarly); earliest.After(from) {
			from = earliest
		}
		if latest := time.UnixMilli(made).Add(dedupe); latest.Before(to) {
			to = latest
		}
	}
	return from, to
}
