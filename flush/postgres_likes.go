package flush

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// What was true when the statement began decides whether an unlike finds a row. A like that is committed at the
// same time is then the later of the two. The subquery is no EXISTS, which the planner may turn into a scan of the
// table.
const setLikesSQL = `
INSERT INTO likes AS l (key, actor, liked, at)
SELECT u.key, u.actor, u.liked, clock_timestamp() FROM unnest($1::text[], $2::text[], $3::boolean[]) AS u (key, actor, liked)
WHERE u.liked OR (SELECT true FROM likes AS o WHERE o.key = u.key COLLATE "C" AND o.actor = u.actor COLLATE "C" LIMIT 1)
ON CONFLICT (key, actor) DO UPDATE
SET liked = excluded.liked, at = greatest(excluded.at, l.at + interval '1 microsecond'), was = l.liked
WHERE l.liked <> excluded.liked
RETURNING key, actor`

// queueLikes sets pairs and notes in before which of them were liked before.
func queueLikes(batch *pgx.Batch, states pairStates, before map[counter.Pair]bool) {
	if len(states.keys) == 0 {
		return
	}
	batch.Queue(setLikesSQL, states.keys, states.actors, states.liked).Query(func(rows pgx.Rows) error {
		for i, key := range states.keys {
			before[counter.Pair{Key: key, Actor: states.actors[i]}] = states.liked[i]
		}
		var pair counter.Pair
		_, err := pgx.ForEachRow(rows, []any{&pair.Key, &pair.Actor}, func() error {
			before[pair] = !before[pair]
			return nil
		})
		return err
	})
}

// errLikeOverflows: likes were set that must not be, as the totals of their keys cannot take them.
var errLikeOverflows = errors.New("a like overflows the total of its key")

// findOverflowing notes the likes that overflow. If there are any, the transaction must be made again without them.
func (g *group) findOverflowing(d decision) bool {
	found := false
	for i, v := range d.verdicts {
		if _, noted := g.overflowing[i]; g.changes[i].Like == counter.NoLike || noted || !errors.Is(v.Err, counter.ErrOverflow) {
			continue
		}
		if g.overflowing == nil {
			g.overflowing = make(map[int]struct{})
		}
		g.overflowing[i] = struct{}{}
		found = true
	}
	return found
}

// A repeat only matters if it is none after all. An unlike that is no repeat leaves a row even where there was none, by
// which an older like that another shard brings later is known to be older. What a row is set from has no column for
// repeats, so they come as a null in was, which is as good as false.
const applyLikesSQL = `
INSERT INTO likes AS l (key, actor, liked, at, was)
SELECT u.key, u.actor, u.liked, u.at, CASE WHEN NOT u.again THEN false END
FROM unnest($1::text[], $2::text[], $3::boolean[], $4::timestamptz[], $5::boolean[]) AS u (key, actor, liked, at, again)
WHERE u.liked OR NOT u.again OR (SELECT true FROM likes AS o WHERE o.key = u.key COLLATE "C" AND o.actor = u.actor COLLATE "C" LIMIT 1)
ON CONFLICT (key, actor) DO UPDATE SET liked = excluded.liked, at = excluded.at, was = l.liked
WHERE excluded.at > l.at AND (excluded.was IS NOT NULL OR l.liked <> excluded.liked)
RETURNING key, liked, coalesce(was, false)`

const copyLikesSQL = `COPY likes (key, actor, liked, at, was) FROM STDIN (FORMAT binary)`

// insertNewLikes inserts those of pairs that are new, if they are many, adds to changed what they add to each key, and returns the
// others, which are left to upsert. COPY takes 0.7 of what an upsert takes for a new row.
//
// Which are new is what the window says. That is wrong if somebody has added a row by hand, if Redis or the ledger went back in time,
// or if another shard's window has the pair. The row violates the unique key then, also if it is committed while COPY waits for it,
// and the transaction is to be repeated with upserts alone.
func insertNewLikes(
	ctx context.Context, tx *postgresTx, pairs []counter.Pair, likes map[counter.Pair]shard.PendingLike, changed map[string]int64,
) ([]counter.Pair, error) {
	var added, rest []counter.Pair
	for _, pair := range pairs {
		if like := likes[pair]; like.New && like.Liked {
			added = append(added, pair)
		} else {
			rest = append(rest, pair)
		}
	}
	if len(added) < copiedRows {
		return pairs, nil
	}
	rows := newCopyRows(len(added))
	for _, pair := range added {
		rows.row(5)
		rows.text(pair.Key)
		rows.text(pair.Actor)
		rows.boolean(true) // liked
		rows.timestamp(time.UnixMicro(likes[pair].Micros))
		rows.boolean(false) // was
		changed[pair.Key]++
	}
	return rest, rows.send(ctx, tx, copyLikesSQL)
}

// queueWindowLikes sets likes of a window, in the order of pairs, and adds to changed what they add to each key.
func queueWindowLikes(batch *pgx.Batch, pairs []counter.Pair, likes map[counter.Pair]shard.PendingLike, changed map[string]int64) {
	var states pairStates
	at, again := make([]time.Time, len(pairs)), make([]bool, len(pairs))
	for i, pair := range pairs {
		like := likes[pair]
		states.keys, states.actors = append(states.keys, pair.Key), append(states.actors, pair.Actor)
		states.liked = append(states.liked, like.Liked)
		at[i], again[i] = time.UnixMicro(like.Micros), like.Since < like.Micros
	}
	batch.Queue(applyLikesSQL, states.keys, states.actors, states.liked, at, again).Query(func(rows pgx.Rows) error {
		var key string
		var liked, was bool
		_, err := pgx.ForEachRow(rows, []any{&key, &liked, &was}, func() error {
			switch {
			case liked && !was:
				changed[key]++
			case was && !liked:
				changed[key]--
			}
			return nil
		})
		return err
	})
}
