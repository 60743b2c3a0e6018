package flush

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// copiedRows is from how many rows on new ones are looked for: with fewer, the round trips take longer than is spared.
	copiedRows = 500
	// sampleEvery is how many keys there are for each that is looked up first, to estimate how many are new.
	sampleEvery = 64
)

// The subquery is one look into the index for each key, whatever the plan: OFFSET keeps it from becoming a join, whose plan,
// made when the table was small, could be to read all of a large one.
const findKnownSQL = `
SELECT u.key FROM unnest($1::text[]) AS u (key)
WHERE EXISTS (SELECT FROM counters AS c WHERE c.key = u.key AND c.shard = $2::smallint OFFSET 0)`

const copyCountersSQL = `
COPY counters (key, shard, count, likes, before_history, updated_at, bucket, bucket_delta) FROM STDIN (FORMAT binary)`

// insertNew inserts rows for those keys of chunk that have none, if they are many, and returns the others, which are left to
// upsert. COPY takes less than half of what an upsert takes for a new row, so if a third are new, that pays for the look at all.
//
// With the watermark locked, no other window of the shard adds rows. Should somebody do so by hand, that violates the unique key,
// and the transaction is to be repeated with upserts alone.
func (p *Postgres) insertNew(ctx context.Context, tx *postgresTx, w Window, chunk deltas) (deltas, error) {
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
	if known, err = findKnown(ctx, tx, w.Shard, chunk.keys); err != nil {
		return deltas{}, err
	}
	var rest deltas
	rows := newCounterRows(len(chunk.keys)-len(known), w.Shard, tx.now)
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
	_, err = tx.conn.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(rows.end()), copyCountersSQL)
	return rest, err
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

// copiedRow is about how many bytes a row has.
const copiedRow = 128

// numericNegative is the sign of negative numerics.
const numericNegative = 0x4000

// postgresEpoch is where timestamps of Postgres begin.
var postgresEpoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// counterRows are rows for copyCountersSQL, in the binary format of COPY.
type counterRows struct {
	data      []byte
	shard     int
	updatedAt time.Time
}

func newCounterRows(n, shard int, updatedAt time.Time) *counterRows {
	// The signature, flags, and the length of more headers.
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)
	return &counterRows{data: append(make([]byte, 0, len(header)+n*copiedRow), header...), shard: shard, updatedAt: updatedAt}
}

// add adds a row whose bucket is a moment in Unix ms, or noBucket.
func (c *counterRows) add(key string, count, likes, bucket int64) {
	before, inBucket := int64(0), count
	if bucket == noBucket {
		before, inBucket = count, 0
	}
	c.data = binary.BigEndian.AppendUint16(c.data, 8) // columns
	c.data = append(binary.BigEndian.AppendUint32(c.data, uint32(len(key))), key...)
	c.data = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(c.data, 2), uint16(c.shard))
	c.bigint(count)
	c.bigint(likes)
	c.numeric(before)
	c.timestamp(c.updatedAt)
	if bucket == noBucket {
		c.data = binary.BigEndian.AppendUint32(c.data, math.MaxUint32) // null
	} else {
		c.timestamp(time.UnixMilli(bucket))
	}
	c.numeric(inBucket)
}

func (c *counterRows) bigint(n int64) {
	c.data = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(c.data, 8), uint64(n))
}

func (c *counterRows) timestamp(t time.Time) { c.bigint(t.Sub(postgresEpoch).Microseconds()) }

// numeric adds an integer in digits of base 10,000.
func (c *counterRows) numeric(n int64) {
	sign, rest := uint16(0), uint64(n)
	if n < 0 {
		sign, rest = numericNegative, -rest
	}
	var buffer [5]uint16
	first := len(buffer)
	for ; rest > 0; rest /= 10_000 {
		first--
		buffer[first] = uint16(rest % 10_000)
	}
	digits := buffer[first:]
	c.data = binary.BigEndian.AppendUint32(c.data, uint32(8+2*len(digits)))
	// Their number, the exponent of the first, the sign, and the decimal places.
	for _, field := range [...]uint16{uint16(len(digits)), uint16(max(len(digits)-1, 0)), sign, 0} {
		c.data = binary.BigEndian.AppendUint16(c.data, field)
	}
	for _, digit := range digits {
		c.data = binary.BigEndian.AppendUint16(c.data, digit)
	}
}

// end returns all that was added.
func (c *counterRows) end() []byte { return binary.BigEndian.AppendUint16(c.data, math.MaxUint16) }
