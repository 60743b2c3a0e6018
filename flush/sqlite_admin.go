package flush

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

var (
	findDated = many{`SELECT key, actor, liked, at FROM likes WHERE (key, actor) IN (VALUES `, `)`, 2}
	setDated  = many{`REPLACE INTO likes (key, actor, liked, at) VALUES `, ``, 4}
	dropOnce  = many{`DELETE FROM once_claims WHERE (key, actor, period, start) IN (VALUES `, `)`, 4}
)

const (
	sqliteForgetLikesSQL = `
DELETE FROM likes WHERE (key, actor) IN (SELECT key, actor FROM likes WHERE key = ? AND NOT liked AND at <= ? LIMIT ?)`
	sqliteForgetLikedSQL = `
DELETE FROM likes WHERE (key, actor) IN (SELECT key, actor FROM likes WHERE actor = ? AND NOT liked AND at <= ? LIMIT ?)`
	sqliteClaimsSQL = `SELECT key, period, start FROM once_claims WHERE actor = ? LIMIT ?`
)

// Mark is that of Postgres.
func (s *SQLite) Mark(context.Context) (counter.Mark, error) {
	return counter.Mark{Now: s.clock.now()}, nil
}

// Settled is that of Postgres.
func (s *SQLite) Settled(context.Context, counter.Mark) (bool, error) { return true, nil }

// Repeated is that of Postgres.
func (s *SQLite) Repeated(ctx context.Context, c counter.Change) (bool, error) {
	var fingerprint int64
	err := s.readers.QueryRowContext(ctx, `SELECT fingerprint FROM request_ids WHERE id = ?`, []byte(newClaimID(c.RequestID))).Scan(&fingerprint)
	known := err == nil
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, sqliteError("look up request id", err)
	}
	now := s.opts.Clock()
	// Asked for after the look-up, as the claim may have been forgotten before that.
	if err := s.forgotten().checkAge(c.RequestID, now.UnixMilli(), s.opts.DedupeWindow); err != nil {
		return false, err
	}
	return judge(&c, now, s.opts.DedupeWindow, known, uint64(fingerprint), s.prints.Load())
}

// SetLikes is that of Postgres.
func (s *SQLite) SetLikes(ctx context.Context, likes []counter.DatedLike) (changed int, asOf time.Time, err error) {
	err = s.update(ctx, "set likes", func(_ context.Context, w *sqliteWriter) error {
		if err := w.checkBalances(); err != nil {
			return err
		}
		now := s.clock.now()
		d := decision{likes: make(map[string]int64)}
		if err := w.setDated(datedStates(likes, now), d.likes); err != nil {
			return err
		}
		held := &standing{}
		if err := s.balances(w, held, slices.Sorted(maps.Keys(d.likes)), now.UnixMilli()); err != nil {
			return err
		}
		for key, n := range d.likes {
			e := counter.Entry{Key: key, Delta: n}
			if !held.addAll([]counter.Entry{e}) {
				return counter.ErrOverflow
			}
			d.sums.add(e)
		}
		changed = sumOf(d.likes)
		return s.write(w, &d, held, now.UnixMilli())
	})
	if err != nil {
		return 0, time.Time{}, err
	}
	return changed, s.clock.now(), nil
}

// setDated sets the states that differ from what there is, and adds to added what they change for each key.
func (w *sqliteWriter) setDated(states map[counter.Pair]shard.PendingLike, added map[string]int64) error {
	args := make([]any, 0, findDated.columns*len(states))
	for pair := range states {
		args = append(args, pair.Key, pair.Actor)
	}
	liked, unchanged := make(map[counter.Pair]bool), make(map[counter.Pair]bool)
	if err := w.query(&findDated, args, func(row sqliteRow) {
		pair := counter.Pair{Key: row.text(0), Actor: row.text(1)}
		liked[pair] = row.integer(2) != 0
		unchanged[pair] = row.integer(3) >= states[pair].Micros
	}); err != nil {
		return err
	}
	args = args[:0]
	for pair, state := range states {
		if unchanged[pair] || liked[pair] == state.Liked {
			continue
		}
		args = append(args, pair.Key, pair.Actor, state.Liked, state.Micros)
		if state.Liked {
			added[pair.Key]++
		} else {
			added[pair.Key]--
		}
	}
	return w.exec(&setDated, args)
}

// ForgetLikes is that of Postgres.
func (s *SQLite) ForgetLikes(ctx context.Context, of counter.Pair, until time.Time, limit int) (int, error) {
	query, name := sqliteForgetLikesSQL, of.Key
	if of.Key == "" {
		query, name = sqliteForgetLikedSQL, of.Actor
	}
	var deleted int64
	err := s.update(ctx, "forget likes", func(ctx context.Context, w *sqliteWriter) error {
		result, err := w.conn.ExecContext(ctx, query, name, until.UnixMicro(), limit)
		if err != nil {
			return err
		}
		deleted, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, err
	}
	return int(deleted), nil
}

// ForgetClaims is that of Postgres. It reads all claims, beside the writer.
func (s *SQLite) ForgetClaims(ctx context.Context, actor string, limit int) (int, error) {
	rows, err := s.readers.QueryContext(ctx, sqliteClaimsSQL, actor, limit)
	if err != nil {
		return 0, sqliteError("forget claims", err)
	}
	var args []any
	var key string
	var period, start int64
	if err := forEachRow(rows, []any{&key, &period, &start}, func() { args = append(args, key, actor, period, start) }); err != nil {
		return 0, sqliteError("forget claims", err)
	}
	err = s.update(ctx, "forget claims", func(_ context.Context, w *sqliteWriter) error { return w.exec(&dropOnce, args) })
	if err != nil {
		return 0, err
	}
	return len(args) / dropOnce.columns, nil
}
