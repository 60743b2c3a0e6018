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

// balances returns what the ledger holds of keys, in their order, with the bucket that a change would go to: without a
// history, what was added before one.
func (s *SQLite) balances(w *sqliteWriter, keys []string, now int64) (map[string]*balance, error) {
	all := make([]balance, len(keys))
	held := make(map[string]*balance, len(keys))
	var unknown, buckets []any
	for i, key := range keys {
		bucket := s.opts.HistoryOf.of(key, s.opts.History).bucket(now)
		known, ok := w.known.get(key)
		if !ok || known.bucket != bucket {
			known = balance{bucket: bucket}
			unknown = append(unknown, key)
			if bucket != noBucket {
				buckets = append(buckets, key, bucket)
			}
		}
		all[i] = known
		held[key] = &all[i]
	}
	if err := w.query(&findTotals, unknown, func(row sqliteRow) {
		b := held[row.text(0)]
		b.total, b.likes, b.before = row.integer(1), row.integer(2), row.integer(3)
		if b.bucket == noBucket {
			b.history = b.before // it moves as a bucket would
		}
	}); err != nil {
		return held, err
	}
	return held, w.query(&findHistory, buckets, func(row sqliteRow) {
		held[row.text(0)].history = row.integer(1)
	})
}
