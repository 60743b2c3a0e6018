package flush

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
)

type commandTag = pgconn.CommandTag

const (
	insertIDsSQL = `
INSERT INTO request_ids (id, fingerprint, at)
SELECT u.id, u.fingerprint, now() FROM unnest($1::bytea[], $2::bigint[]) AS u (id, fingerprint)
ON CONFLICT (id) DO NOTHING RETURNING id`

	findIDsSQL = `SELECT id, fingerprint, changed FROM request_ids WHERE id = ANY ($1::bytea[])`

	unchangedIDsSQL = `UPDATE request_ids SET changed = false WHERE id = ANY ($1::bytea[])`

	deleteIDsSQL = `DELETE FROM request_ids WHERE id = ANY ($1::bytea[])`

	insertOnceSQL = `
INSERT INTO once_claims (key, actor, period, start, expires)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[])
ON CONFLICT (key, actor, period, start) DO NOTHING RETURNING key, actor, period, start`

	deleteOnceSQL = `
DELETE FROM once_claims AS c USING unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS u (key, actor, period, start)
WHERE (c.key, c.actor, c.period, c.start) = (u.key, u.actor, u.period, u.start)`

	// sumsSQL are the rows of counters that sums make.
	//
	// Likes may be null: there are none. Histories may be null: all are $6. What is of neither hours nor minutes is added before
	// history. $7 is the moment whose bucket is meant, null for now. The subqueries are evaluated once, and not for each row.
	sumsSQL = `
    INSERT INTO counters AS c (key, shard, count, likes, before_history, updated_at, bucket, bucket_delta)
    SELECT u.key, $5::smallint, u.delta, coalesce(u.likes, 0), CASE WHEN b.bucket IS NULL THEN u.delta ELSE 0 END, now(),
        b.bucket, CASE WHEN b.bucket IS NULL THEN 0 ELSE u.delta END
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS u (key, delta, likes, history),
        LATERAL (SELECT CASE coalesce(u.history, $6::text)
            WHEN 'hour' THEN (SELECT date_trunc('hour', coalesce($7::timestamptz, now()), 'UTC'))
            WHEN 'minute' THEN (SELECT date_trunc('minute', coalesce($7::timestamptz, now()), 'UTC'))
        END) AS b (bucket)`

	// addToRowsSQL adds them to the rows that are there. A change of the bucket that the row has is added to it. One of another bucket,
	// later or earlier, takes its place, and moveBucketsSQL moves what the row had to the table history. An upsert returns only what
	// it has written, so the row itself notes what it had.
	addToRowsSQL = `
    ON CONFLICT (key, shard) DO UPDATE SET
        count = c.count + excluded.count,
        likes = c.likes + excluded.likes,
        before_history = c.before_history + excluded.before_history,
        updated_at = excluded.updated_at,
        bucket = coalesce(excluded.bucket, c.bucket),
        bucket_delta = CASE WHEN c.bucket <> excluded.bucket THEN excluded.bucket_delta ELSE c.bucket_delta + excluded.bucket_delta END,
        previous_bucket = CASE WHEN c.bucket <> excluded.bucket THEN c.bucket END,
        previous_delta = CASE WHEN c.bucket <> excluded.bucket THEN c.bucket_delta END
    RETURNING key, shard, previous_bucket, previous_delta`

	moveBucketsSQL = `
INSERT INTO history AS h (key, bucket, shard, delta)
SELECT key, previous_bucket, shard, previous_delta FROM changed WHERE previous_delta <> 0
ON CONFLICT (key, bucket, shard) DO UPDATE SET delta = h.delta + excluded.delta`

	addSumsSQL = `WITH changed AS (` + sumsSQL + addToRowsSQL + `)` + moveBucketsSQL

	// A row must be there to be locked.
	touchCountersSQL = `
INSERT INTO counters (key, shard, updated_at) SELECT u.key, 0, now() FROM unnest($1::text[]) AS u (key)
ON CONFLICT (key, shard) DO NOTHING`

	lockCountersSQL = `SELECT key, count, likes FROM counters WHERE key = ANY ($1::text[]) AND shard = 0 ORDER BY key FOR UPDATE`
)

// directShard is the shard whose rows hold the counts of direct mode, which has no others.
const directShard = 0

// errClaimVanished: a claim that was met was pruned, or its transaction was undone, before it could be read.
var errClaimVanished = errors.New("a claim vanished while it was read")

// Commit implements DirectLedger. A group without once-per and likes takes one round trip if its ids, if any, are new. Others take
// two or three.
//
// Whether totals fit is first judged for the group as a whole: a change that would overflow in its place is
// applied if others of the group make room for it, as if they had come before.
func (p *Postgres) Commit(ctx context.Context, changes []counter.Change) ([]Verdict, time.Time, error) {
	g := newGroup(changes, p.opts.DedupeWindow, p.prints.Load())
	// Overflows are left to the database to notice. Only after one are rows locked and read, to find out
	// whose change it was. Resets need to know what they take back.
	careful := g.hasResets
	plain := !g.hasOnce && !g.hasLikes
	longer := false // an id is known, or may be
	for attempt := 1; ; attempt++ {
		var verdicts []Verdict
		var at time.Time
		var err error
		switch {
		case !plain || careful || longer:
			verdicts, at, err = p.commitWithClaims(ctx, g, careful)
		case len(g.fingerprints) == 0:
			verdicts, at, err = p.commitPlain(ctx, g)
		default:
			verdicts, at, err = p.commitNew(ctx, g)
		}
		switch {
		case err == nil:
			return verdicts, at, nil
		case errors.Is(err, errKnownID):
			longer = true
		case attempt < maxAttempts && isOverflow(err) && !careful:
			careful = true
		case errors.Is(err, errLikeOverflows):
			attempt-- // each time there is a like less
		case attempt < maxAttempts && isConflict(err):
			longer = true // it says how it is isolated, whatever the database's default
		default:
			return nil, time.Time{}, err
		}
	}
}

// commitPlain commits a group without claims. A batch that has no BEGIN is one transaction, which commits
// when the server gets to its end.
func (p *Postgres) commitPlain(ctx context.Context, g *group) ([]Verdict, time.Time, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, time.Time{}, postgresError("commit", err)
	}
	defer conn.Release()
	d := g.decide(&standing{})
	var now time.Time
	batch := &pgx.Batch{}
	sent := time.Now()
	queueClock(batch, &now)
	p.queueSums(batch, d.sorted(), directShard, nil)
	failpoint.Hit(failpoint.DirectCommitBefore)
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return nil, time.Time{}, commitError("commit", err)
	}
	failpoint.Hit(failpoint.DirectCommitAfter)
	return d.verdicts, asOf(now, sent), nil
}

// commitWithClaims takes the group's claims, which makes other servers with the same ones wait, decides, and
// commits. Locks are taken in one order by all servers: ids, once-per claims, likes, counters, history, each of
// them sorted.
func (p *Postgres) commitWithClaims(ctx context.Context, g *group, careful bool) ([]Verdict, time.Time, error) {
	claims := newClaimSet(g)
	batch := &pgx.Batch{}
	claims.queueIDs(batch, g)
	tx, err := p.begin(ctx, batch)
	if err != nil {
		return nil, time.Time{}, postgresError("commit", err)
	}
	defer tx.end(ctx)

	now := tx.now.UnixMilli()
	g.setTime(now, now, forgotten{})
	s := &standing{
		ids: make(map[claimID]keptID), once: make(map[onceClaim]struct{}), liked: make(map[counter.Pair]bool),
	}
	if err := claims.findKnown(ctx, tx, s.ids); err != nil {
		return nil, time.Time{}, postgresError("commit", err)
	}
	batch = &pgx.Batch{}
	claims.queueOnce(batch, g, s)
	if g.hasLikes {
		queueLikes(batch, g.finalLikes(s), s.liked)
	}
	if careful {
		s.balances = make(map[string]*balance)
		queueLock(batch, g.keys(), s.balances)
	}
	if batch.Len() > 0 {
		if err := tx.send(ctx, batch); err != nil {
			return nil, time.Time{}, postgresError("commit", err)
		}
	}

	d := g.decide(s)
	if g.findOverflowing(d) {
		return nil, time.Time{}, errLikeOverflows
	}
	if !d.applied { // nothing to write; end gives back the claims
		return d.verdicts, asOf(tx.now, tx.sent), nil
	}
	batch = &pgx.Batch{}
	claims.queueRelease(batch, g, d)
	p.queueSums(batch, d.sorted(), directShard, nil)
	failpoint.Hit(failpoint.DirectCommitBefore)
	if err := tx.commit(ctx, batch); err != nil {
		return nil, time.Time{}, commitError("commit", err)
	}
	failpoint.Hit(failpoint.DirectCommitAfter)
	return d.verdicts, asOf(tx.now, tx.sent), nil
}

// queueSums adds sums to counters and history. Counters are locked in the order of their keys, but for new ones of a window, which
// come first (insertNew): should that meet somebody's locks, the window is applied without. Whatever their history,
// a row of history is only written with its counter locked.
func (p *Postgres) queueSums(batch *pgx.Batch, rounds []deltas, shard int, at *time.Time) {
	for _, round := range rounds {
		if len(round.keys) == 0 {
			continue
		}
		batch.Queue(addSumsSQL, p.sumsArgs(round, shard, at)...)
	}
}

// sumsArgs are the parameters of addSumsSQL.
func (p *Postgres) sumsArgs(sums deltas, shard int, at *time.Time) []any {
	histories := p.opts.HistoryOf.all(sums.keys, p.opts.History)
	return []any{sums.keys, sums.values, sums.likes, histories, shard, string(p.opts.History), at}
}

// queueLock locks the rows of keys, which are sorted, and reads their totals into balances.
func queueLock(batch *pgx.Batch, keys []string, balances map[string]*balance) {
	for _, key := range keys {
		balances[key] = &balance{}
	}
	batch.Queue(touchCountersSQL, keys)
	batch.Queue(lockCountersSQL, keys).Query(func(rows pgx.Rows) error {
		var key string
		var count, likes int64
		_, err := pgx.ForEachRow(rows, []any{&key, &count, &likes}, func() error {
			balances[key].total, balances[key].likes = count, likes
			return nil
		})
		return err
	})
}
