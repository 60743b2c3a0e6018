package flush

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

var (
	findIDs    = many{`SELECT id, fingerprint FROM request_ids WHERE id IN (VALUES `, `)`, 1}
	findOnce   = many{`SELECT key, actor, period, start FROM once_claims WHERE (key, actor, period, start) IN (VALUES `, `)`, 4}
	findTotals = many{`SELECT key, count FROM counters WHERE key IN (VALUES `, `)`, 1}
	// The bucket comes with every key, so that a row of parameters says all.
	findHistory = many{`SELECT key, delta FROM history WHERE (key, bucket) IN (VALUES `, `)`, 2}

	addIDs  = many{`INSERT INTO request_ids (id, fingerprint, at) VALUES `, ``, 3}
	addOnce = many{`INSERT INTO once_claims (key, actor, period, start, expires) VALUES `, ``, 5}

	// Sums are made in Go: SQLite turns one that overflows into a floating point number.
	setTotals = many{
		`INSERT INTO counters (key, count, updated_at) VALUES `,
		` ON CONFLICT (key) DO UPDATE SET count = excluded.count, updated_at = excluded.updated_at`, 3,
	}
	setHistory = many{
		`INSERT INTO history (key, bucket, delta) VALUES `,
		` ON CONFLICT (key, bucket) DO UPDATE SET delta = excluded.delta`, 3,
	}
)

// Commit implements DirectLedger. A change that would carry a bucket of history over the edge of int64 is
// refused with counter.ErrOverflow too.
func (s *SQLite) Commit(ctx context.Context, changes []counter.Change) ([]Verdict, time.Time, error) {
	g := newGroup(changes, s.opts.DedupeWindow)
	var d decision
	err := s.update(ctx, "commit", func(ctx context.Context, w *sqliteWriter) error {
		now := s.clock.now().UnixMilli()
		g.setTime(now)
		held, err := s.standing(ctx, w, g, now)
		if err != nil {
			return err
		}
		d = g.decide(held)
		if err := w.claim(ctx, g, d, now); err != nil {
			return err
		}
		return s.write(ctx, w, d.sums, held, now)
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return d.verdicts, s.clock.now(), nil
}

// standing reads what the ledger holds that matters to the group.
func (s *SQLite) standing(ctx context.Context, w *sqliteWriter, g *group, now int64) (standing, error) {
	held := standing{ids: make(map[claimID]uint64), once: make(map[onceClaim]struct{}), totals: make(map[string]int64)}
	var args []any
	for _, id := range g.claimIDs() {
		args = append(args, []byte(id))
	}
	var id []byte
	var fingerprint int64
	if err := w.query(ctx, findIDs, args, []any{&id, &fingerprint}, func() { held.ids[claimID(id)] = uint64(fingerprint) }); err != nil {
		return standing{}, err
	}

	args = nil
	for _, c := range g.onceClaims(held.ids) {
		args = append(args, c.key, c.actor, c.period, c.start)
	}
	var claim onceClaim
	dest := []any{&claim.key, &claim.actor, &claim.period, &claim.start}
	if err := w.query(ctx, findOnce, args, dest, func() { held.once[claim] = struct{}{} }); err != nil {
		return standing{}, err
	}

	keys := g.keys()
	args = make([]any, len(keys))
	for i, key := range keys {
		args[i] = key
	}
	var key string
	var value int64
	if err := w.query(ctx, findTotals, args, []any{&key, &value}, func() { held.totals[key] = value }); err != nil {
		return standing{}, err
	}
	if s.opts.History == HistoryNone {
		return held, nil
	}
	held.history = make(map[string]int64)
	bucket := s.opts.History.bucket(now)
	pairs := make([]any, 0, 2*len(keys))
	for _, key := range keys {
		pairs = append(pairs, key, bucket)
	}
	err := w.query(ctx, findHistory, pairs, []any{&key, &value}, func() { held.history[key] = value })
	return held, err
}

// claim writes the claims of the applied changes.
func (w *sqliteWriter) claim(ctx context.Context, g *group, d decision, now int64) error {
	var args []any
	for _, id := range g.claimIDs() {
		if _, used := d.ids[id]; used {
			args = append(args, []byte(id), int64(g.fingerprints[id]), now)
		}
	}
	if err := w.exec(ctx, addIDs, args); err != nil {
		return err
	}
	args = nil
	for c := range d.once {
		args = append(args, c.key, c.actor, c.period, c.start, c.expires(g.dedupe))
	}
	return w.exec(ctx, addOnce, args)
}

// write sets what the applied changes have led to.
func (s *SQLite) write(ctx context.Context, w *sqliteWriter, applied sums, held standing, now int64) error {
	if len(applied.rounds) == 0 {
		return nil
	}
	keys := slices.Sorted(maps.Keys(applied.rounds[0])) // every key is in the first round
	totals := make([]any, 0, 3*len(keys))
	history := make([]any, 0, 3*len(keys))
	bucket := s.opts.History.bucket(now)
	for _, key := range keys {
		totals = append(totals, key, held.totals[key], now)
		history = append(history, key, bucket, held.history[key])
	}
	if err := w.exec(ctx, setTotals, totals); err != nil {
		return err
	}
	if held.history == nil {
		return nil
	}
	return w.exec(ctx, setHistory, history)
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
	sqlitePruneIDsSQL = `
DELETE FROM request_ids WHERE id IN (SELECT id FROM request_ids WHERE at < ? ORDER BY at LIMIT ?)`
	sqlitePruneOnceSQL = `
DELETE FROM once_claims WHERE (key, actor, period, start) IN (
    SELECT key, actor, period, start FROM once_claims WHERE expires < ? ORDER BY expires LIMIT ?)`
)

// PruneClaims implements DirectLedger.
func (s *SQLite) PruneClaims(ctx context.Context, limit int) (int, error) {
	pruned := 0
	err := s.update(ctx, "prune claims", func(ctx context.Context, w *sqliteWriter) error {
		now := s.clock.now().UnixMilli()
		kept := (s.opts.DedupeWindow + counter.MaxEarly + claimMargin).Milliseconds()
		for _, prune := range []struct {
			query  string
			before int64
		}{{sqlitePruneIDsSQL, now - kept}, {sqlitePruneOnceSQL, now}} {
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
