package flush

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plusone-dev/plusone/internal/counter"
)

// claimSet is the claims that a transaction tries to take, and which of them it got.
type claimSet struct {
	ids      []claimID
	takenIDs map[claimID]struct{}

	once      []onceClaim
	takenOnce map[onceClaim]struct{}
}

func newClaimSet(g *group) *claimSet {
	return &claimSet{ids: g.claimIDs(), takenIDs: make(map[claimID]struct{}), takenOnce: make(map[onceClaim]struct{})}
}

// queueIDs takes the ids. It waits for other transactions that are taking the same ones.
func (c *claimSet) queueIDs(batch *pgx.Batch, g *group) {
	if len(c.ids) == 0 {
		return
	}
	batch.Queue(insertIDsSQL, idBytes(c.ids), g.printsOf(c.ids)).Query(func(rows pgx.Rows) error {
		var id []byte
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error { c.takenIDs[claimID(id)] = struct{}{}; return nil })
		return err
	})
}

// findKnown reads the fingerprints of the ids that others have.
func (c *claimSet) findKnown(ctx context.Context, tx *postgresTx, known map[claimID]keptID) error {
	var missing []claimID
	for _, id := range c.ids {
		if _, ok := c.takenIDs[id]; !ok {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(findIDsSQL, idBytes(missing)).Query(func(rows pgx.Rows) error {
		var id []byte
		var fingerprint int64
		var kept keptID
		_, err := pgx.ForEachRow(rows, []any{&id, &fingerprint, &kept.changed}, func() error {
			kept.fingerprint = uint64(fingerprint)
			known[claimID(id)] = kept
			return nil
		})
		return err
	})
	if err := tx.send(ctx, batch); err != nil {
		return err
	}
	if len(known) < len(missing) {
		return errClaimVanished
	}
	return nil
}

// queueOnce takes the once-per claims, and notes in s.once those that others have.
func (c *claimSet) queueOnce(batch *pgx.Batch, g *group, s *standing) {
	if c.once = g.onceClaims(s.ids); len(c.once) == 0 {
		return
	}
	keys, actors, periods, starts := onceColumns(c.once)
	expires := make([]time.Time, len(c.once))
	for i, claim := range c.once {
		expires[i] = time.UnixMilli(claim.expires(g.dedupe))
	}
	batch.Queue(insertOnceSQL, keys, actors, periods, starts, expires).Query(func(rows pgx.Rows) error {
		var claim onceClaim
		_, err := pgx.ForEachRow(rows, []any{&claim.key, &claim.actor, &claim.period, &claim.start}, func() error {
			c.takenOnce[claim] = struct{}{}
			return nil
		})
		for _, claim := range c.once {
			if _, ok := c.takenOnce[claim]; !ok {
				s.once[claim] = struct{}{}
			}
		}
		return err
	})
}

// queueRelease gives back the claims that were taken for changes that are not applied, and notes with those of
// likes that changed nothing that they did not.
func (c *claimSet) queueRelease(batch *pgx.Batch, g *group, d decision) {
	var ids, unchanged []claimID
	for _, id := range c.ids {
		_, taken := c.takenIDs[id]
		if _, used := d.ids[id]; taken && !used {
			ids = append(ids, id)
		}
	}
	for i, v := range d.verdicts {
		if g.changes[i].Like != counter.NoLike && g.ids[i] != "" && v.Outcome == counter.Applied && !v.Changed {
			unchanged = append(unchanged, g.ids[i])
		}
	}
	if len(unchanged) > 0 {
		batch.Queue(unchangedIDsSQL, idBytes(unchanged))
	}
	if len(ids) > 0 {
		batch.Queue(deleteIDsSQL, idBytes(ids))
	}
	var once []onceClaim
	for _, claim := range c.once {
		_, taken := c.takenOnce[claim]
		if _, used := d.once[claim]; taken && !used {
			once = append(once, claim)
		}
	}
	if len(once) > 0 {
		keys, actors, periods, starts := onceColumns(once)
		batch.Queue(deleteOnceSQL, keys, actors, periods, starts)
	}
}

// printsOf returns the fingerprints of ids as Postgres keeps them.
func (g *group) printsOf(ids []claimID) []int64 {
	fingerprints := make([]int64, len(ids))
	for i, id := range ids {
		fingerprints[i] = int64(g.fingerprints[id])
	}
	return fingerprints
}

func idBytes(ids []claimID) [][]byte {
	bytes := make([][]byte, len(ids))
	for i, id := range ids {
		bytes[i] = []byte(id)
	}
	return bytes
}

func onceColumns(claims []onceClaim) (keys, actors []string, periods, starts []int64) {
	for _, c := range claims {
		keys, actors = append(keys, c.key), append(actors, c.actor)
		periods, starts = append(periods, c.period), append(starts, c.start)
	}
	return keys, actors, periods, starts
}

// The claims' tables share a shape: a time after which a row may go. Rows that another server is pruning
// are left to it.
const (
	pruneIDsSQL = `
DELETE FROM request_ids WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM request_ids WHERE at < now() - $1::interval ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))`
	pruneOnceSQL = `
DELETE FROM once_claims WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM once_claims WHERE expires < now() ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED))`
)

// PruneClaims implements DirectLedger.
func (p *Postgres) PruneClaims(ctx context.Context, limit int) (int, error) {
	ids, err := p.pool.Exec(ctx, pruneIDsSQL, p.opts.DedupeWindow+counter.MaxEarly+claimMargin, limit)
	if err != nil {
		return 0, postgresError("prune claims", err)
	}
	pruned := int(ids.RowsAffected())
	if pruned >= limit {
		return pruned, nil
	}
	once, err := p.pool.Exec(ctx, pruneOnceSQL, limit-pruned)
	if err != nil {
		return pruned, postgresError("prune claims", err)
	}
	return pruned + int(once.RowsAffected()), nil
}
