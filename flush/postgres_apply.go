package flush

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
)

// rowsPerStatement is where larger statements stop being faster, while each costs memory on both sides.
const rowsPerStatement = 10_000

// Of two markers the one that comes last stays: it was made because Redis had lost the other, and is in force there.
const addMarkersSQL = `
INSERT INTO counters AS c (key, shard, spread, updated_at)
SELECT u.key, $3::smallint, u.marker, now() FROM unnest($1::text[], $2::bigint[]) AS u (key, marker)
ON CONFLICT (key, shard) DO UPDATE SET spread = excluded.spread
WHERE c.spread <> excluded.spread`

// Apply implements WindowLedger. Rows of a shard are only written with its watermark locked, so windows of
// one shard wait for each other. Those of different shards only do where they have a pair in common, whose key was
// spread in between: pairs are locked in their order, after the watermark and before any counter. Where new likes are inserted,
// these come before the others, and two such windows may wait in a circle: the server ends one, and it is repeated with upserts alone.
func (p *Postgres) Apply(ctx context.Context, w Window) (Applied, error) {
	mode, clip := p.firstMode(), false
	for attempt := 1; ; attempt++ {
		applied, err := p.applyWindow(ctx, w, mode, clip)
		switch {
		case err == nil:
			return applied, nil
		case attempt < maxAttempts && isOverflow(err) && !clip:
			clip = true
		case attempt < maxAttempts && mode == insertSampled && isUniqueViolation(err, "counters"):
			p.lookFrom(time.Now())
			mode = insertFound
		case attempt < maxAttempts && (isConflict(err) || mode != upsert && hasCode(err, codeUniqueViolation)):
			mode = upsert // which locks pairs, and then counters, in their order
		default:
			return Applied{}, err
		}
	}
}

// applyWindow applies a window in one transaction, and if clip is set with totals that stop at the edge of int64.
func (p *Postgres) applyWindow(ctx context.Context, w Window, mode insertMode, clip bool) (Applied, error) {
	watermark := int64(-1)
	batch := &pgx.Batch{}
	batch.Queue(`SELECT watermark FROM shards WHERE shard = $1 FOR UPDATE`, w.Shard).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&watermark}, func() error { return nil })
		return err
	})
	tx, err := p.begin(ctx, batch)
	if err != nil {
		return Applied{}, postgresError("apply window", err)
	}
	defer tx.end(ctx)
	switch {
	case watermark < 0:
		return Applied{}, errNoShard(w.Shard)
	case w.Oldest() <= watermark:
		return Applied{Previous: watermark}, nil
	}

	applied := Applied{OK: true, Previous: watermark}
	at := time.UnixMilli(w.ID)
	sums, likes, err := applyLikes(ctx, tx, w, mode, &applied)
	if err != nil {
		return Applied{}, postgresError("apply window", err)
	}
	for rows := sortDeltas(sums, likes); len(rows.keys) > 0; {
		var chunk deltas
		chunk, rows = rows.first(rowsPerStatement)
		switch {
		case clip:
			chunk, err = p.clip(ctx, tx, w.Shard, chunk, &applied)
		case mode != upsert:
			chunk, err = p.insertNew(ctx, tx, w, chunk, mode)
		}
		if err != nil {
			return Applied{}, postgresError("apply window", err)
		}
		if len(chunk.keys) == 0 {
			continue
		}
		batch := &pgx.Batch{}
		p.queueSums(batch, []deltas{chunk}, w.Shard, &at)
		if err := tx.send(ctx, batch); err != nil {
			return Applied{}, postgresError("apply window", err)
		}
	}

	batch = &pgx.Batch{}
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(w.Markers)), rowsPerStatement) {
		markers := make([]int64, len(keys))
		for i, key := range keys {
			markers[i] = int64(w.Markers[key])
		}
		batch.Queue(addMarkersSQL, keys, markers, w.Shard)
	}
	batch.Queue(`UPDATE shards SET watermark = $2, token = $3 WHERE shard = $1`, w.Shard, w.ID, w.Token)
	failpoint.Hit(failpoint.ApplyCommitBefore)
	if err := tx.commit(ctx, batch); err != nil {
		return Applied{}, commitError("apply window", err)
	}
	failpoint.Hit(failpoint.ApplyCommitAfter)
	return applied, nil
}

// applyLikes sets the likes of a window, and returns what the window adds by what they have changed: to the keys in all, and of that
// by likes.
func applyLikes(ctx context.Context, tx *postgresTx, w Window, mode insertMode, applied *Applied) (sums, likes map[string]int64, err error) {
	if len(w.Likes) == 0 && len(w.LikeDeltas) == 0 {
		return w.Deltas, nil, nil
	}
	likes = make(map[string]int64)
	for pairs := range slices.Chunk(slices.SortedFunc(maps.Keys(w.Likes), comparePairs), rowsPerStatement) {
		if mode != upsert {
			if pairs, err = insertNewLikes(ctx, tx, pairs, w.Likes, likes); err != nil {
				return nil, nil, err
			}
		}
		if len(pairs) == 0 {
			continue
		}
		batch := &pgx.Batch{}
		queueWindowLikes(batch, pairs, w.Likes, likes)
		if err := tx.send(ctx, batch); err != nil {
			return nil, nil, err
		}
	}
	return w.correct(likes, applied), likes, nil
}

// clip replaces the deltas that would carry a row over the edge of int64 by what is left up to the edge, and
// notes them in applied.
func (p *Postgres) clip(ctx context.Context, tx *postgresTx, shard int, chunk deltas, applied *Applied) (deltas, error) {
	totals := make(map[string]int64, len(chunk.keys))
	batch := &pgx.Batch{}
	const sql = `SELECT key, count FROM counters WHERE key = ANY ($1::text[]) AND shard = $2`
	batch.Queue(sql, chunk.keys, shard).Query(func(rows pgx.Rows) error {
		var key string
		var count int64
		_, err := pgx.ForEachRow(rows, []any{&key, &count}, func() error { totals[key] = count; return nil })
		return err
	})
	if err := tx.send(ctx, batch); err != nil {
		return deltas{}, err
	}
	clipped := deltas{keys: chunk.keys, values: slices.Clone(chunk.values), likes: chunk.likes}
	for i, key := range chunk.keys {
		total := totals[key]
		if room := counter.AddSaturating(total, chunk.values[i]) - total; room != chunk.values[i] {
			clipped.values[i] = room
			applied.adjust(key)
			applied.Clipped++
		}
	}
	return clipped, nil
}
