package flush

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// sampleEvery is how many keys there are for each that is looked up first, to estimate how many are new.
const sampleEvery = 64

// The subquery is one look into the index for each key, whatever the plan: OFFSET keeps it from becoming a join, whose plan,
// made when the table was small, could be to read all of a large one.
const findKnownSQL = `
SELECT u.key FROM unnest($1::text[]) AS u (key)
WHERE EXISTS (SELECT FROM counters AS c WHERE c.key = u.key AND c.shard = $2::smallint OFFSET 0)`

const copyCountersSQL = `
COPY counters (key, shard, count, likes, before_history, updated_at, bucket, bucket_delta) FROM STDIN (FORMAT binary)`

// insertMode is how rows of keys and pairs that are new come into the ledger.
type insertMode int

const (
	upsert        insertMode = iota // as all others do
	insertFound                     // by COPY, keys once they were looked for
	insertSampled                   // by COPY, keys without a look if a sample of them has none that are known
)

// lookFor is for how long all keys are looked for after a sample had none of those that were known.
const lookFor = 10 * time.Minute

// firstMode is the one that is tried first.
func (p *Postgres) firstMode() insertMode {
	if time.Now().UnixNano() < p.lookUntil.Load() {
		return insertFound
	}
	return insertSampled
}

func (p *Postgres) lookFrom(now time.Time) { p.lookUntil.Store(now.Add(lookFor).UnixNano()) }

// insertNew inserts rows for those keys of chunk that have none, if they are many, and returns the others, which are left to
// upsert. COPY takes less than half of what an upsert takes for a new row, so if a third are new, that pays for the look at all. The
// look takes as much as a third of COPY, so it is spared where all seem to be new.
//
// With the watermark locked, no other window of the shard adds rows. Should somebody do so by hand, or a key be known that was not in the
// sample, that violates the unique key, and the transaction is to be repeated with the next lower mode.
func (p *Postgres) insertNew(ctx context.Context, tx *postgresTx, w Window, chunk deltas, mode insertMode) (deltas, error) {
	if len(chunk.keys) < copiedRows {
		return chunk, nil
	}
	var sample []string
	for i := 0; i < len(chunk.keys); i += sampleEvery {
		sample = append(sample, chunk.keys[i])
	}
	known, err := findKnown(ctx, tx, w.Shard, sample)
	if err != nil || 3*len(known) > 2*len(sample) {
		return chunk, err
	}
	if len(known) > 0 || mode != insertSampled {
		if known, err = findKnown(ctx, tx, w.Shard, chunk.keys); err != nil {
			return deltas{}, err
		}
	}
	var rest deltas
	rows := counterRows{newCopyRows(len(chunk.keys) - len(known)), w.Shard, tx.now}
	for i, key := range chunk.keys {
		var likes int64
		if chunk.likes != nil {
			likes = chunk.likes[i]
		}
		if len(known) == 0 || known[0] != key {
			rows.add(key, chunk.values[i], likes, p.opts.HistoryOf.of(key, p.opts.History).bucket(w.ID))
			continue
		}
		known = known[1:]
		rest.keys, rest.values = append(rest.keys, key), append(rest.values, chunk.values[i])
		if chunk.likes != nil {
			rest.likes = append(rest.likes, likes)
		}
	}
	return rest, rows.send(ctx, tx, copyCountersSQL)
}

// findKnown returns those of keys that have a row of the shard, in their order.
func findKnown(ctx context.Context, tx *postgresTx, shard int, keys []string) (known []string, err error) {
	batch := &pgx.Batch{}
	batch.Queue(findKnownSQL, keys, shard).Query(func(rows pgx.Rows) error {
		known, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err := tx.send(ctx, batch); err != nil {
		return nil, err
	}
	return known, nil
}

// counterRows are rows for copyCountersSQL.
type counterRows struct {
	copyRows
	shard     int
	updatedAt time.Time
}

// add adds a row whose bucket is a moment in Unix ms, or noBucket.
func (c *counterRows) add(key string, count, likes, bucket int64) {
	before, inBucket := int64(0), count
	if bucket == noBucket {
		before, inBucket = count, 0
	}
	c.row(8)
	c.text(key)
	c.smallint(c.shard)
	c.bigint(count)
	c.bigint(likes)
	c.numeric(before)
	c.timestamp(c.updatedAt)
	if bucket == noBucket {
		c.null()
	} else {
		c.timestamp(time.UnixMilli(bucket))
	}
	c.numeric(inBucket)
}
