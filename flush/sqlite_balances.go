package flush

import (
	"context"
	"database/sql/driver"
	"errors"
)

// dataVersion changes when another connection has changed the database.
var dataVersion = many{`PRAGMA data_version`, ``, 0}

// sqliteBalances is how many balances the writer knows by heart in either of two generations: a few megabytes.
const sqliteBalances = 10_000

// knownBalances are balances as the last commit left them, so that they need not be read: no one but the writer changes
// them. Should another connection have written all the same, or the writer in other ways, they are forgotten. Memory
// is bounded by dropping the older of two generations, so that what is changed often stays.
type knownBalances struct {
	recent, older map[string]balance
	// version is the data version that they are of.
	version int64
}

func (k *knownBalances) get(key string) (balance, bool) {
	b, ok := k.recent[key]
	if !ok {
		b, ok = k.older[key]
	}
	return b, ok
}

func (k *knownBalances) put(key string, b balance) {
	if k.recent == nil || len(k.recent) >= sqliteBalances {
		k.recent, k.older = make(map[string]balance), k.recent
	}
	k.recent[key] = b
}

func (k *knownBalances) forget() { k.recent, k.older = nil, nil }

// checkBalances forgets the known balances if another connection has changed the database since they were read. It is
// asked within the transaction, in which no other can.
func (w *sqliteWriter) checkBalances() error {
	return w.raw(func(conn driver.ConnPrepareContext) error {
		statement, err := w.prepare(conn, sized{&dataVersion, 0})
		if err != nil {
			return err
		}
		rows, err := statement.QueryContext(context.Background(), nil)
		if err != nil {
			return err
		}
		row := make(sqliteRow, 1)
		if err := rows.Next(row); err != nil {
			return errors.Join(err, rows.Close())
		}
		if version := row.integer(0); version != w.known.version {
			w.known.forget()
			w.known.version = version
		}
		return rows.Close()
	})
}

// movedBucket is what has to be done for a row to have another bucket: a bucket is in the key's row or in history, never in both.
type movedBucket struct {
	// bucket and history are the row's own, which go to history; noBucket if it has none.
	bucket, history int64
	// found says that the other one is in history, from which it goes.
	found bool
}

// balances adds to held what the ledger holds of keys, each with the bucket that a change would go to.
func (s *SQLite) balances(w *sqliteWriter, held *standing, keys []string, now int64) error {
	all := make([]balance, len(keys))
	held.buckets, held.balances = true, make(map[string]*balance, len(keys))
	var unknown []any
	for i, key := range keys {
		known, ok := w.known.get(key)
		if !ok {
			known.bucket = noBucket
			unknown = append(unknown, key)
		}
		all[i] = known
		held.balances[key] = &all[i]
	}
	if err := w.query(&findTotals, unknown, func(row sqliteRow) {
		b := held.balances[row.text(0)]
		b.total, b.likes, b.before = row.integer(1), row.integer(2), row.integer(3)
		if row[4] != nil {
			b.bucket, b.history = row.integer(4), row.integer(5)
		}
	}); err != nil {
		return err
	}
	return s.moveBuckets(w, held, keys, now)
}

// moveBuckets gives the balances the buckets that changes of this moment go to.
func (s *SQLite) moveBuckets(w *sqliteWriter, held *standing, keys []string, now int64) error {
	var others []any
	for _, key := range keys {
		b, bucket := held.balances[key], s.opts.HistoryOf.of(key, s.opts.History).bucket(now)
		if b.unkept = bucket == noBucket; b.unkept || bucket == b.bucket {
			continue
		}
		if held.moved == nil {
			held.moved = make(map[string]movedBucket)
		}
		held.moved[key] = movedBucket{bucket: b.bucket, history: b.history}
		b.bucket, b.history = bucket, 0
		others = append(others, key, bucket)
	}
	return w.query(&findHistory, others, func(row sqliteRow) {
		key := row.text(0)
		moved := held.moved[key]
		moved.found = true
		held.moved[key] = moved
		held.balances[key].history = row.integer(1)
	})
}

// setBuckets moves the buckets of keys, whose rows are written next, between these and history.
func (w *sqliteWriter) setBuckets(held *standing, keys []string) error {
	if len(held.moved) == 0 {
		return nil
	}
	var add, drop []any
	for _, key := range keys {
		moved, ok := held.moved[key]
		if !ok {
			continue
		}
		if moved.bucket != noBucket {
			add = append(add, key, moved.bucket, moved.history)
		}
		if moved.found {
			drop = append(drop, key, held.balances[key].bucket)
		}
	}
	if err := w.exec(&addHistory, add); err != nil {
		return err
	}
	return w.exec(&dropHistory, drop)
}
