package flush

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/shard"
)

var (
	findIDs    = many{`SELECT id, fingerprint, changed FROM request_ids WHERE id IN (VALUES `, `)`, 1}
	findOnce   = many{`SELECT key, actor, period, start FROM once_claims WHERE (key, actor, period, start) IN (VALUES `, `)`, 4}
	findLikes  = many{`SELECT key, actor, liked FROM likes WHERE (key, actor) IN (VALUES `, `)`, 2}
	findTotals = many{`SELECT key, count, likes, before_history, bucket, bucket_delta FROM counters WHERE key IN (VALUES `, `)`, 1}
	// The bucket comes with every key, so that a row of parameters says all.
	findHistory = many{`SELECT key, delta FROM history WHERE (key, bucket) IN (VALUES `, `)`, 2}

	// After a failure all is rolled back, so SQLite need not keep what it would take to undo the statement alone.
	addIDs  = many{`INSERT OR FAIL INTO request_ids (id, fingerprint, changed, at) VALUES `, ``, 4}
	addOnce = many{`INSERT OR FAIL INTO once_claims (key, actor, period, start, expires) VALUES `, ``, 5}

	// Sums are made in Go: SQLite turns one that overflows into a floating point number. All columns are written, so
	// that a row can be replaced without being read.
	setTotals = many{
		`REPLACE INTO counters (key, count, likes, before_history, updated_at, bucket, bucket_delta) VALUES `, ``, 7,
	}
	addHistory  = many{`INSERT INTO history (key, bucket, delta) VALUES `, ` ON CONFLICT DO UPDATE SET delta = delta + excluded.delta`, 3}
	dropHistory = many{`DELETE FROM history WHERE (key, bucket) IN (VALUES `, `)`, 2}
	setLikes    = many{
		`INSERT INTO likes (key, actor, liked, at) VALUES `,
		` ON CONFLICT (key, actor) DO UPDATE SET liked = excluded.liked, at = max(excluded.at, likes.at + 1)
		WHERE liked <> excluded.liked`, 4,
	}
)

// errKnownID: a request id that was taken for new is not, or may not be.
var errKnownID = errors.New("a request id is known")

// Commit implements DirectLedger. A change that would carry a bucket of history over the edge of int64 is
// refused with counter.ErrOverflow too.
func (s *SQLite) Commit(ctx context.Context, changes []counter.Change) ([]Verdict, time.Time, error) {
	g := newGroup(changes, s.opts.DedupeWindow, s.prints.Load())
	var d decision
	err := s.update(ctx, "commit", func(ctx context.Context, w *sqliteWriter) error {
		// Ids are nearly always new, which to insert them finds out too. They are looked for after it did not hold,
		// until there is a group of which it would have held.
		err := s.settle(w, g, &d, w.expectKnown || g.hasOnce)
		if errors.Is(err, errKnownID) {
			w.expectKnown = true
			// Only ids have been written.
			if err = w.restart(ctx); err == nil {
				err = s.settle(w, g, &d, true)
			}
		}
		if err != nil {
			return err
		}
		failpoint.Hit(failpoint.DirectCommitBefore)
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	failpoint.Hit(failpoint.DirectCommitAfter)
	return d.verdicts, s.clock.now(), nil
}

// settle decides the changes and writes what they lead to. If it is not to look for ids and one is known, that is
// errKnownID, before it has written anything but ids.
func (s *SQLite) settle(w *sqliteWriter, g *group, d *decision, lookForIDs bool) error {
	now, wall := s.clock.now().UnixMilli(), s.opts.Clock().UnixMilli()
	s.tellOfStep(now - wall)
	g.setTime(now, wall, s.forgotten())
	if err := w.checkBalances(); err != nil {
		return err
	}
	held, err := s.standing(w, g, now, lookForIDs)
	if err != nil {
		return err
	}
	if lookForIDs {
		w.expectKnown = len(held.ids) > 0
	}
	before := maps.Clone(held.liked)
	*d = g.decide(held)
	if !lookForIDs && !g.allUsed(d) {
		// What such a change is answered depends on whether its id is known, which inserting the others does not tell.
		return errKnownID
	}
	if err := w.claim(g, d, now); err != nil {
		return err
	}
	if err := w.setLikes(before, held.liked, s.clock.now().UnixMicro()); err != nil {
		return err
	}
	return s.write(w, d, held, now)
}

// allUsed reports whether each id that is neither too old nor too early is that of an applied change.
func (g *group) allUsed(d *decision) bool {
	for i, id := range g.ids {
		if id == "" || g.refused[i] != nil {
			continue
		}
		if _, used := d.ids[id]; !used {
			return false
		}
	}
	return true
}

// standing reads what the ledger holds that matters to the group.
func (s *SQLite) standing(w *sqliteWriter, g *group, now int64, lookForIDs bool) (*standing, error) {
	held := &standing{
		ids: make(map[claimID]keptID), once: make(map[onceClaim]struct{}), liked: make(map[counter.Pair]bool),
	}
	if lookForIDs {
		if err := w.findIDs(g, held); err != nil {
			return nil, err
		}
	}
	if err := w.findOnce(g, held); err != nil {
		return nil, err
	}
	var args []any
	for i := range g.changes {
		if c := &g.changes[i]; c.Like != counter.NoLike {
			args = append(args, c.Entries[0].Key, c.Actor)
		}
	}
	if err := w.query(&findLikes, args, func(row sqliteRow) {
		held.liked[counter.Pair{Key: row.text(0), Actor: row.text(1)}] = row.integer(2) != 0
	}); err != nil {
		return nil, err
	}
	return held, s.balances(w, held, g.keys(), now)
}

// findIDs reads which of the group's ids are taken.
func (w *sqliteWriter) findIDs(g *group, held *standing) error {
	args := make([]any, 0, len(g.ids))
	for _, id := range g.claimIDs() {
		args = append(args, []byte(id))
	}
	return w.query(&findIDs, args, func(row sqliteRow) {
		held.ids[claimID(row.blob(0))] = keptID{uint64(row.integer(1)), row.integer(2) != 0}
	})
}

// findOnce reads which of the group's once-per claims are taken.
func (w *sqliteWriter) findOnce(g *group, held *standing) error {
	if !g.hasOnce {
		return nil
	}
	var args []any
	for _, c := range g.onceClaims(held.ids) {
		args = append(args, c.key, c.actor, c.period, c.start)
	}
	return w.query(&findOnce, args, func(row sqliteRow) {
		claim := onceClaim{key: row.text(0), actor: row.text(1), period: row.integer(2), start: row.integer(3)}
		held.once[claim] = struct{}{}
	})
}

// claim writes the claims of the applied changes.
func (w *sqliteWriter) claim(g *group, d *decision, now int64) error {
	args := make([]any, 0, addIDs.columns*len(d.ids))
	for _, id := range g.claimIDs() {
		if changed, used := d.ids[id]; used {
			args = append(args, []byte(id), int64(g.fingerprints[id]), changed, now)
		}
	}
	if err := w.exec(&addIDs, args); err != nil {
		var sqliteErr *sqlite.Error
		if errors.As(err, &sqliteErr) && sqliteErr.Code()&0xff == sqlite3.SQLITE_CONSTRAINT {
			return fmt.Errorf("%w: %w", errKnownID, err)
		}
		return err
	}
	args = nil
	for c := range d.once {
		args = append(args, c.key, c.actor, c.period, c.start, c.expires(g.dedupe))
	}
	return w.exec(&addOnce, args)
}

// setLikes writes the pairs that the group has changed.
func (w *sqliteWriter) setLikes(before, after map[counter.Pair]bool, now int64) error {
	var args []any
	for pair, liked := range after {
		if liked != before[pair] {
			args = append(args, pair.Key, pair.Actor, liked, now)
		}
	}
	return w.exec(&setLikes, args)
}

// write sets what the applied changes have led to.
func (s *SQLite) write(w *sqliteWriter, d *decision, held *standing, now int64) error {
	if len(d.sums.rounds) == 0 {
		return nil
	}
	var keys []string
	for key, delta := range d.sums.rounds[0] { // every key is in the first round
		// A reset that has nothing to do begins no bucket.
		if delta != 0 || d.likes[key] != 0 || len(d.sums.rounds) > 1 {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	totals := make([]any, 0, setTotals.columns*len(keys))
	for _, key := range keys {
		b := held.balances[key]
		b.likes += d.likes[key]
		var bucket any
		if b.bucket != noBucket {
			bucket = b.bucket
		}
		totals = append(totals, key, b.total, b.likes, b.before, now, bucket, b.history)
		// Should the transaction fail, the writer is closed, and with it goes what it knows.
		w.known.put(key, *b)
	}
	if err := w.setBuckets(held, keys); err != nil {
		return err
	}
	return w.exec(&setTotals, totals)
}

// Counts implements DirectLedger.
func (s *SQLite) Counts(ctx context.Context, keys []string) ([]counter.Count, error) {
	// Taken before the snapshot.
	at := s.clock.now()
	counts := make([]counter.Count, len(keys))
	if len(keys) == 0 {
		return counts, nil
	}
	positions := make(map[string][]int, len(keys))
	args := make([]any, len(keys))
	for i, key := range keys {
		counts[i] = counter.Count{Key: key, AsOf: at}
		positions[key] = append(positions[key], i)
		args[i] = key
	}
	query := `SELECT key, count, likes FROM counters WHERE key IN (?` + strings.Repeat(`, ?`, len(keys)-1) + `)` //nolint:gosec // placeholders alone
	rows, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, sqliteError("read counts", err)
	}
	var key string
	var value, likes int64
	err = forEachRow(rows, []any{&key, &value, &likes}, func() {
		for _, i := range positions[key] {
			counts[i].Value, counts[i].Likes = value, likes
		}
	})
	if err != nil {
		return nil, sqliteError("read counts", err)
	}
	return counts, nil
}

const (
	// UUIDv7s, by their own time.
	sqlitePruneTimedIDsSQL = `
DELETE FROM request_ids WHERE id IN (SELECT id FROM request_ids WHERE id >= x'07' AND id < ? ORDER BY id LIMIT ?)`
	// Others, by when they came.
	sqlitePruneIDsSQL = `
DELETE FROM request_ids WHERE id IN (SELECT id FROM request_ids WHERE id < x'07' AND at < ? ORDER BY at LIMIT ?)`
	sqlitePruneOnceSQL = `
DELETE FROM once_claims WHERE (key, actor, period, start) IN (
    SELECT key, actor, period, start FROM once_claims WHERE expires < ? ORDER BY expires LIMIT ?)`
	sqliteLastForgottenSQL = `
SELECT (SELECT max(id) FROM request_ids WHERE id >= x'07' AND id < ?),
    coalesce((SELECT max(expires) FROM once_claims WHERE expires < ?), 0)`
)

// forgotten is up to where claims have been forgotten since the ledger was opened.
func (s *SQLite) forgotten() forgotten {
	return forgotten{ids: s.forgottenIDs.Load(), once: s.forgottenOnce.Load()}
}

// forget notes what is about to be forgotten: UUIDv7s before timed, and once-per claims that end before once.
func (s *SQLite) forget(ctx context.Context, w *sqliteWriter, timed []byte, once int64) error {
	var id []byte
	var end int64
	if err := w.conn.QueryRowContext(ctx, sqliteLastForgottenSQL, timed, once).Scan(&id, &end); err != nil {
		return err
	}
	s.forgottenIDs.Store(max(s.forgottenIDs.Load(), timeOf(id)))
	s.forgottenOnce.Store(max(s.forgottenOnce.Load(), end))
	return nil
}

// PruneClaims implements DirectLedger. What has a time of its own is forgotten by the clock by which it is judged.
func (s *SQLite) PruneClaims(ctx context.Context, limit int) (int, error) {
	pruned := 0
	err := s.update(ctx, "prune claims", func(ctx context.Context, w *sqliteWriter) error {
		now, wall := s.clock.now().UnixMilli(), s.opts.Clock().UnixMilli()
		kept := (s.opts.DedupeWindow + counter.MaxEarly + claimMargin).Milliseconds()
		timed := timedBefore(wall - kept)
		if err := s.forget(ctx, w, timed, wall); err != nil {
			return err
		}
		for _, prune := range []struct {
			query  string
			before any
		}{{sqlitePruneTimedIDsSQL, timed}, {sqlitePruneIDsSQL, now - kept}, {sqlitePruneOnceSQL, wall}} {
			result, err := w.conn.ExecContext(ctx, prune.query, prune.before, limit-pruned)
			if err != nil {
				return err
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			pruned += int(n)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return pruned, nil
}

// timedBefore is what comes after the claims of all UUIDv7s made before the moment ms, and before those of others.
func timedBefore(ms int64) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(max(ms, 0))<<16)
	return append([]byte{7}, b[:6]...)
}

// timeOf is when a UUIDv7 was made, in Unix ms, by its claim; 0 if there is none.
func timeOf(claim []byte) int64 {
	if len(claim) < 7 {
		return 0
	}
	var ms [8]byte
	copy(ms[2:], claim[1:7])
	return int64(binary.BigEndian.Uint64(ms[:]))
}

// Likes implements DirectLedger.
func (s *SQLite) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	likes := shard.LedgerLikes{States: make([]counter.LikeState, len(pairs))}
	if len(pairs) == 0 {
		return likes, nil
	}
	positions := make(map[counter.Pair][]int, len(pairs))
	args := make([]any, 0, 2*len(pairs))
	for i, pair := range pairs {
		positions[pair] = append(positions[pair], i)
		args = append(args, pair.Key, pair.Actor)
	}
	query := `SELECT key, actor, liked, at FROM likes WHERE (key, actor) IN (VALUES (?, ?)` + strings.Repeat(`, (?, ?)`, len(pairs)-1) + `)` //nolint:gosec // placeholders alone
	rows, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return shard.LedgerLikes{}, sqliteError("read likes", err)
	}
	var pair counter.Pair
	var liked bool
	var at int64
	err = forEachRow(rows, []any{&pair.Key, &pair.Actor, &liked, &at}, func() {
		for _, i := range positions[pair] {
			likes.States[i] = counter.LikeState{Liked: liked, At: time.UnixMicro(at)}
		}
	})
	if err != nil {
		return shard.LedgerLikes{}, sqliteError("read likes", err)
	}
	return likes, nil
}
