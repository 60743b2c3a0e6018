package flush

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
)

const (
	repeatedSQL = `SELECT now(), (SELECT fingerprint FROM request_ids WHERE id = $1)`

	// What is to be deleted is looked at once more when it is locked: it may be liked by then.
	forgetLikesSQL = `
DELETE FROM likes WHERE (key, actor) IN (SELECT key, actor FROM likes WHERE key = $1 AND NOT liked AND at <= $2 LIMIT $3)
AND NOT liked AND at <= $2`
	forgetLikedSQL = `
DELETE FROM likes WHERE (key, actor) IN (SELECT key, actor FROM likes WHERE actor = $1 AND NOT liked AND at <= $2 LIMIT $3)
AND NOT liked AND at <= $2`
	forgetClaimsSQL = `
DELETE FROM once_claims WHERE ctid = ANY (ARRAY (SELECT ctid FROM once_claims WHERE actor = $1 LIMIT $2 FOR UPDATE SKIP LOCKED))`
)

// Mark takes a mark, in direct mode.
func (p *Postgres) Mark(ctx context.Context) (counter.Mark, error) {
	var mark counter.Mark
	if err := p.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&mark.Now); err != nil {
		return counter.Mark{}, postgresError("read clock", err)
	}
	return mark, nil
}

// Settled reports, of direct mode, that the ledger has all there is.
func (p *Postgres) Settled(context.Context, counter.Mark) (bool, error) { return true, nil }

// Repeated reports, in direct mode, whether a change with a request id was counted before. It is
// counter.ErrRequestIDReused if the id was used for something else, and another of the counter package's errors if the id
// is too old or too early.
func (p *Postgres) Repeated(ctx context.Context, c counter.Change) (bool, error) {
	var now time.Time
	var fingerprint *int64
	if err := p.pool.QueryRow(ctx, repeatedSQL, []byte(newClaimID(c.RequestID))).Scan(&now, &fingerprint); err != nil {
		return false, postgresError("look up request id", err)
	}
	if fingerprint == nil {
		return judge(&c, now, p.opts.DedupeWindow, false, 0, p.prints.Load())
	}
	return judge(&c, now, p.opts.DedupeWindow, true, uint64(*fingerprint), p.prints.Load())
}

// SetLikes sets likes, in direct mode and one transaction, each as of its moment, and returns how many of them that
// changed. AsOf is a moment from which every read shows them. To set them again changes nothing.
func (p *Postgres) SetLikes(ctx context.Context, likes []counter.DatedLike) (changed int, asOf time.Time, err error) {
	for attempt := 1; ; attempt++ {
		changed, asOf, err = p.setLikes(ctx, likes)
		switch {
		case isOverflow(err):
			return 0, time.Time{}, fmt.Errorf("%w: %w", counter.ErrOverflow, err)
		case err == nil || attempt == maxAttempts || !isConflict(err):
			return changed, asOf, err
		}
	}
}

func (p *Postgres) setLikes(ctx context.Context, likes []counter.DatedLike) (int, time.Time, error) {
	tx, err := p.begin(ctx, &pgx.Batch{})
	if err != nil {
		return 0, time.Time{}, postgresError("set likes", err)
	}
	defer tx.end(ctx)
	states, added := datedStates(likes, tx.now), make(map[string]int64)
	for pairs := range slices.Chunk(slices.SortedFunc(maps.Keys(states), comparePairs), rowsPerStatement) {
		batch := &pgx.Batch{}
		queueWindowLikes(batch, pairs, states, added)
		if err := tx.send(ctx, batch); err != nil {
			return 0, time.Time{}, postgresError("set likes", err)
		}
	}
	batch := &pgx.Batch{}
	p.queueSums(batch, []deltas{sortDeltas(added, added)}, directShard, nil)
	if err := tx.commit(ctx, batch); err != nil {
		return 0, time.Time{}, commitError("set likes", err)
	}
	return sumOf(added), asOf(tx.now, tx.sent), nil
}

// ForgetLikes deletes up to limit rows of a key, or of an actor, that are unliked since the moment or longer, and returns
// how many it deleted. One of key and actor is empty.
func (p *Postgres) ForgetLikes(ctx context.Context, of counter.Pair, until time.Time, limit int) (int, error) {
	query, name := forgetLikesSQL, of.Key
	if of.Key == "" {
		query, name = forgetLikedSQL, of.Actor
	}
	deleted, err := p.pool.Exec(ctx, query, name, until, limit)
	if err != nil {
		return 0, postgresError("forget likes", err)
	}
	return int(deleted.RowsAffected()), nil
}

// ForgetClaims deletes up to limit once-per claims of an actor, and returns how many it deleted.
func (p *Postgres) ForgetClaims(ctx context.Context, actor string, limit int) (int, error) {
	deleted, err := p.pool.Exec(ctx, forgetClaimsSQL, actor, limit)
	if err != nil {
		return 0, postgresError("forget claims", err)
	}
	return int(deleted.RowsAffected()), nil
}
