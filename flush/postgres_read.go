package flush

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// now() is the start of the transaction, which is the statement, and so not after its snapshot.
// statement_timestamp() would be: the server takes the snapshot when it binds a statement and the
// timestamp when it executes it.
const countsSQL = `
SELECT least(greatest(coalesce(sum(c.count), 0), -9223372036854775808), 9223372036854775807)::bigint,
       least(greatest(coalesce(sum(c.likes), 0), -9223372036854775808), 9223372036854775807)::bigint,
       now()
FROM unnest($1::text[]) WITH ORDINALITY AS k (key, n)
LEFT JOIN counters AS c ON c.key = k.key COLLATE "C"
GROUP BY k.n ORDER BY k.n`

// Counts implements DirectLedger.
func (p *Postgres) Counts(ctx context.Context, keys []string) ([]counter.Count, error) {
	rows, err := p.pool.Query(ctx, countsSQL, keys)
	if err != nil {
		return nil, postgresError("read counts", err)
	}
	counts := make([]counter.Count, 0, len(keys))
	var value, likes int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&value, &likes, &at}, func() error {
		counts = append(counts, counter.Count{Key: keys[len(counts)], Value: value, Likes: likes, AsOf: at})
		return nil
	})
	if err != nil {
		return nil, postgresError("read counts", err)
	}
	return counts, nil
}

// One statement, so one snapshot. Watermarks come as rows without a key.
const basesSQL = `
SELECT key, shard, count, likes, spread FROM counters WHERE key = ANY ($1::text[])
UNION ALL
SELECT NULL, shard, watermark, 0, 0 FROM shards`

// Bases implements WindowLedger.
func (p *Postgres) Bases(ctx context.Context, keys []string) (shard.LedgerBases, error) {
	rows, err := p.pool.Query(ctx, basesSQL, keys)
	if err != nil {
		return shard.LedgerBases{}, postgresError("read bases", err)
	}
	var bases shard.LedgerBases
	var key *string
	var row shard.LedgerRow
	_, err = pgx.ForEachRow(rows, []any{&key, &row.Shard, &row.Total, &row.Likes, &row.Spread}, func() error {
		if key != nil {
			row.Key = *key
			bases.Rows = append(bases.Rows, row)
			return nil
		}
		bases.Watermarks = withWatermark(bases.Watermarks, row.Shard, row.Total)
		return nil
	})
	if err != nil {
		return shard.LedgerBases{}, postgresError("read bases", err)
	}
	return bases, nil
}

// One statement, so one snapshot. Watermarks come as rows without a position. The limit has each pair looked up in
// the index of its partition, where a plain join might read all of likes.
const likesSQL = `
SELECT k.n, l.liked, l.at, 0 AS shard, 0 AS watermark
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (key, actor, n)
CROSS JOIN LATERAL (
    SELECT liked, at FROM likes WHERE key = k.key COLLATE "C" AND actor = k.actor COLLATE "C" LIMIT 1
) AS l
UNION ALL
SELECT NULL, false, now(), shard, watermark FROM shards`

// The same for pairs of one key, which are many when it is liked by many: one partition is opened for all. The actors are
// no "= ANY", of which a plan for any parameters may make a filter on all likes of the key.
const likesOfKeySQL = `
SELECT k.n, l.liked, l.at, 0 AS shard, 0 AS watermark
FROM unnest($2::text[]) WITH ORDINALITY AS k (actor, n)
CROSS JOIN LATERAL (
    SELECT liked, at FROM likes WHERE key = $1::text COLLATE "C" AND actor = k.actor COLLATE "C" LIMIT 1
) AS l
UNION ALL
SELECT NULL, false, now(), shard, watermark FROM shards`

// Likes implements DirectLedger and WindowLedger.
func (p *Postgres) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	keys, actors, oneKey := make([]string, len(pairs)), make([]string, len(pairs)), len(pairs) > 0
	for i, pair := range pairs {
		keys[i], actors[i] = pair.Key, pair.Actor
		oneKey = oneKey && pair.Key == pairs[0].Key
	}
	query, of := likesSQL, any(keys)
	if oneKey {
		query, of = likesOfKeySQL, keys[0]
	}
	rows, err := p.pool.Query(ctx, query, of, actors)
	if err != nil {
		return shard.LedgerLikes{}, postgresError("read likes", err)
	}
	likes := shard.LedgerLikes{States: make([]counter.LikeState, len(pairs))}
	var position *int
	var state counter.LikeState
	var n int
	var watermark int64
	_, err = pgx.ForEachRow(rows, []any{&position, &state.Liked, &state.At, &n, &watermark}, func() error {
		if position != nil {
			likes.States[*position-1] = state
			return nil
		}
		likes.Watermarks = withWatermark(likes.Watermarks, n, watermark)
		return nil
	})
	if err != nil {
		return shard.LedgerLikes{}, postgresError("read likes", err)
	}
	return likes, nil
}

// Watermark implements WindowLedger.
func (p *Postgres) Watermark(ctx context.Context, n int) (watermark shard.SealedWindow, err error) {
	err = p.pool.QueryRow(ctx, `SELECT watermark, token FROM shards WHERE shard = $1`, n).Scan(&watermark.ID, &watermark.Token)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return shard.SealedWindow{}, errNoShard(n)
	case err != nil:
		return shard.SealedWindow{}, postgresError("read watermark", err)
	}
	return watermark, nil
}

// errNoShard reports a shard that EnsureSettings has not created.
func errNoShard(shard int) error {
	return fmt.Errorf("the ledger has no shard %d", shard)
}

// Markers implements WindowLedger.
func (p *Postgres) Markers(ctx context.Context, n int) (map[string]shard.Marker, error) {
	rows, err := p.pool.Query(ctx, `SELECT key, spread FROM counters WHERE shard = $1 AND spread <> 0`, n)
	if err != nil {
		return nil, postgresError("read markers", err)
	}
	markers := make(map[string]shard.Marker)
	var key string
	var marker shard.Marker
	if _, err := pgx.ForEachRow(rows, []any{&key, &marker}, func() error { markers[key] = marker; return nil }); err != nil {
		return nil, postgresError("read markers", err)
	}
	return markers, nil
}

const likersSQL = `
(SELECT actor, 0 AS shard, 0 AS watermark FROM likes WHERE key = $1::text COLLATE "C" LIMIT $2)
UNION ALL
SELECT NULL, shard, watermark FROM shards`

// Likers implements WindowLedger.
func (p *Postgres) Likers(ctx context.Context, key string, most int, visit func(actor []byte)) ([]int64, error) {
	rows, err := p.pool.Query(ctx, likersSQL, key, most)
	if err != nil {
		return nil, postgresError("read likers", err)
	}
	defer rows.Close()
	var watermarks []int64
	for rows.Next() {
		if actor := rows.RawValues()[0]; actor != nil {
			visit(actor)
			continue
		}
		var n int
		var watermark int64
		if err := rows.Scan(nil, &n, &watermark); err != nil {
			return nil, postgresError("read likers", err)
		}
		watermarks = withWatermark(watermarks, n, watermark)
	}
	if err := rows.Err(); err != nil {
		return nil, postgresError("read likers", err)
	}
	return watermarks, nil
}

// withWatermark sets that of a shard.
func withWatermark(watermarks []int64, n int, watermark int64) []int64 {
	for len(watermarks) <= n {
		watermarks = append(watermarks, 0)
	}
	watermarks[n] = watermark
	return watermarks
}
