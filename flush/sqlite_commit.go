package flush

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/shard"
)

var (
	findIDs    = many{`SELECT id, fingerprint, changed FROM request_ids WHERE id IN (VALUES `, `)`, 1}
	findOnce   = many{`SELECT key, actor, period, start FROM once_claims WHERE (key, actor, period, start) IN (VALUES `, `)`, 4}
	findLikes  = many{`SELECT key, actor, liked FROM likes WHERE (key, actor) IN (VALUES `, `)`, 2}
	findTotals = many{`SELECT key, count, likes, before_history FROM counters WHERE key IN (VALUES `, `)`, 1}
	// The bucket comes with every key, so that a row of parameters says all.
	findHistory = many{`SELECT key, delta FROM history WHERE (key, bucket) IN (VALUES `, `)`, 2}

	addIDs  = many{`INSERT INTO request_ids (id, fingerprint, changed, at) VALUES `, ``, 4}
	addOnce = many{`INSERT INTO once_claims (key, actor, period, start, expires) VALUES `, ``, 5}

	// Sums are made in Go: SQLite turns one that overflows into a floating point number.
	setTotals = many{
		`INSERT INTO counters (key, count, likes, before_history, updated_at) VALUES `,
		` ON CONFLICT (key) DO UPDATE SET count = excluded.count, likes = excluded.likes,
		before_history = excluded.before_history, updated_at = excluded.updated_at`, 5,
	}
	setLikes = many{
		`INSERT INTO likes (key, actor, liked, at) VALUES `,
		` ON CONFLICT (key, actor) DO UPDATE SET liked = excluded.liked, at = max(excluded.at, likes.at + 1)
		WHERE liked <> excluded.liked`, 4,
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
		before := maps.Clone(held.liked)
		d = g.decide(held.standing)
		if err := w.claim(ctx, g, d, now); err != nil {
			return err
		}
		if err := w.setLikes(ctx, before, held.liked, s.clock.now().UnixMicro()); err != nil {
			return err
		}
		if err := s.write(ctx, w, d, held, now); err != nil {
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

// sqliteStanding is a standing, and what else is in the rows that are written anew.
type sqliteStanding struct {
	standing
	likes         map[string]int64
	beforeHistory map[string]int64
}

// standing reads what the ledger holds that matters to the group.
func (s *SQLite) standing(ctx context.Context, w *sqliteWriter, g *group, now int64) (sqliteStanding, error) {
	held := sqliteStanding{
		standing: standing{
			ids: make(map[claimID]keptID), once: make(map[onceClaim]struct{}), liked: make(map[counter.Pair]bool),
			totals: make(map[string]int64),
		},
		likes: make(map[string]int64), beforeHistory: make(map[string]int64),
	}
	held.history = make(map[string]int64)
	if s.opts.History == HistoryNone {
		held.history = held.beforeHistory // it moves as a bucket would
	}
	if err := w.findClaims(ctx, g, held.standing); err != nil {
		return sqliteStanding{}, err
	}
	var args []any
	for _, c := range g.changes {
		if c.Like != counter.NoLike {
			args = append(args, c.Entries[0].Key, c.Actor)
		}
	}
	var pair counter.Pair
	var liked bool
	if err := w.query(ctx, findLikes, args, []any{&pair.Key, &pair.Actor, &liked}, func() { held.liked[pair] = liked }); err != nil {
		return sqliteStanding{}, err
	}
	return held, s.findTotals(ctx, w, g.keys(), held, now)
}

// findClaims reads which of the group's ids and once-per claims are taken.
func (w *sqliteWriter) findClaims(ctx context.Context, g *group, held standing) error {
	var args []any
	for _, id := range g.claimIDs() {
		args = append(args, []byte(id))
	}
	var id []byte
	var fingerprint int64
	var changed bool
	if err := w.query(ctx, findIDs, args, []any{&id, &fingerprint, &changed}, func() {
		held.ids[claimID(id)] = keptID{uint64(fingerprint), changed}
	}); err != nil {
		return err
	}
	args = nil
	for _, c := range g.onceClaims(held.ids) {
		args = append(args, c.key, c.actor, c.period, c.start)
	}
	var claim onceClaim
	dest := []any{&claim.key, &claim.actor, &claim.period, &claim.start}
	return w.query(ctx, findOnce, args, dest, func() { held.once[claim] = struct{}{} })
}

// findTotals reads what the keys stand at, and the bucket that a change would go to: without a history, what was
// added before one.
func (s *SQLite) findTotals(ctx context.Context, w *sqliteWriter, keys []string, held sqliteStanding, now int64) error {
	args := make([]any, len(keys))
	for i, key := range keys {
		args[i] = key
	}
	var key string
	var value, likes, before int64
	if err := w.query(ctx, findTotals, args, []any{&key, &value, &likes, &before}, func() {
		held.totals[key], held.likes[key], held.beforeHistory[key] = value, likes, before
	}); err != nil {
		return err
	}
	if s.opts.History == HistoryNone {
		return nil
	}
	bucket := s.opts.History.bucket(now)
	pairs := make([]any, 0, 2*len(keys))
	for _, key := range keys {
		pairs = append(pairs, key, bucket)
	}
	return w.query(ctx, findHistory, pairs, []any{&key, &value}, func() { held.history[key] = value })
}

// claim writes the claims of the applied changes.
func (w *sqliteWriter) claim(ctx context.Context, g *group, d decision, now int64) error {
	var args []any
	for _, id := range g.claimIDs() {
		if changed, used := d.ids[id]; used {
			args = append(args, []byte(id), int64(g.fingerprints[id]), changed, now)
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

// setLikes writes the pairs that the group has changed.
func (w *sqliteWriter) setLikes(ctx context.Context, before, after map[counter.Pair]bool, now int64) error {
	var args []any
	for pair, liked := range after {
		if liked != before[pair] {
			args = append(args, pair.Key, pair.Actor, liked, now)
		}
	}
	return w.exec(ctx, setLikes, args)
}

// write sets what the applied changes have led to.
func (s *SQLite) write(ctx context.Context, w *sqliteWriter, d decision, held sqliteStanding, now int64) error {
	if len(d.sums.rounds) == 0 {
		return nil
	}
	keys := slices.Sorted(maps.Keys(d.sums.rounds[0])) // every key is in the first round
	totals := make([]any, 0, setTotals.columns*len(keys))
	history := make([]any, 0, setHistory.columns*len(keys))
	bucket := s.opts.History.bucket(now)
	for _, key := range keys {
		totals = append(totals, key, held.totals[key], held.likes[key]+d.likes[key], held.beforeHistory[key], now)
		history = append(history, key, bucket, held.history[key])
	}
	if err := w.exec(ctx, setTotals, totals); err != nil || s.opts.History == HistoryNone {
		return err
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
