package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Settling is how long bases may still be cached that were read from the ledger before: a ledger whose totals were
// set right must be compared with the bases after that.
const Settling = loadAttempt

const (
	// auditChunk is how many bases are compared at a time: a few milliseconds of Redis.
	auditChunk = 1_000
	// auditPause is between two looks at a base that differs. Most that do are just being moved.
	auditPause = 50 * time.Millisecond
	// defaultAuditPatience is ample for a worker to finish the largest window.
	defaultAuditPatience = 2 * time.Minute
)

// BaseAudit compares the bases that are cached in Redis with the ledger, while servers and workers are using
// both.
//
// A base is what the ledger holds without the windows that it has applied and that are not moved yet (rule 8), and
// is exactly that unless one of those was applied with other amounts than it holds. So a base that differs
// is looked at again, each time with a fresh snapshot of the ledger, until it does not, or until it has done so
// twice while no applied window was there.
type BaseAudit struct {
	Ledger BaseReader
	// Drop says that bases that differ are deleted: they are loaded again when they are needed.
	Drop bool
	// Report is called for each base that differs, and Dropped when it has been deleted.
	Report  func(BaseDifference) error
	Dropped func(BaseDifference)
	// Progress, if it is not nil, is called now and then with the number of bases compared so far.
	Progress func(compared int)
	// Patience is how long to look at bases for which windows never stop to be moved; 0 is 2 minutes.
	Patience time.Duration
}

// BaseReader is the part of Ledger that an audit needs.
type BaseReader interface {
	Bases(ctx context.Context, keys []string) (LedgerBases, error)
}

// BaseDifference is a cached base that is not what the ledger holds.
type BaseDifference struct {
	Shard int
	Key   string
	// Base and Ledger are a total, and a colon and the part of it that comes from likes if there is one.
	Base, Ledger string
}

// Errors of an audit that could not be finished.
var (
	errNotMoved = errors.New("windows that the ledger has applied are still in Redis, and bases that differ may wait for them: is a worker running?")
	errAhead    = errors.New("redis has finished windows that the ledger does not have: was the ledger set back?")
)

// AuditBases compares all bases that are cached from the beginning to the end of the audit, and returns how many
// it compared. A base that is cached, or moved to another node, meanwhile may be left out.
func (r *Redis) AuditBases(ctx context.Context, audit BaseAudit) (int, error) {
	compare, err := loadScript("lib", "int64", "base", "audit")
	if err != nil {
		return 0, err
	}
	audit.Patience = cmp.Or(audit.Patience, defaultAuditPatience)
	a := &baseAuditor{BaseAudit: audit, redis: r, compare: compare, shards: make(map[string]int)}
	for n := range r.meta {
		a.shards[r.prefix(n)] = n
	}
	for addr, node := range r.client.Nodes() {
		if err := a.node(ctx, node); err != nil {
			return a.compared, fmt.Errorf("audit bases of Redis %s: %w", addr, err)
		}
	}
	return a.compared, nil
}

type baseAuditor struct {
	BaseAudit
	redis    *Redis
	compare  *script
	shards   map[string]int // by prefix of their keys
	compared int
}

// node audits the bases of a node, unless it is a replica.
func (a *baseAuditor) node(ctx context.Context, node rueidis.Client) error {
	role, err := node.Do(ctx, node.B().Role().Build()).ToArray()
	if err != nil || len(role) == 0 {
		return errors.Join(errAnswer, err)
	}
	if name, err := role[0].ToString(); err != nil || name != "master" {
		return err
	}
	refs := make(map[baseRef]struct{}, auditChunk)
	for cursor := uint64(0); ; {
		page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match("plusone:{*}:base:*").Count(auditChunk).Build()).AsScanEntry()
		if err != nil {
			return err
		}
		for _, name := range page.Elements {
			if ref, ok := a.parse(name); ok {
				refs[ref] = struct{}{}
			}
		}
		cursor = page.Cursor
		if len(refs) < auditChunk && cursor != 0 {
			continue
		}
		if err := a.settle(ctx, refs); err != nil {
			return err
		}
		if a.Progress != nil {
			a.Progress(a.compared)
		}
		if cursor == 0 {
			return nil
		}
		clear(refs)
	}
}

// parse reads the name of a base, of whatever generation. Other deployments' shards have other prefixes.
func (a *baseAuditor) parse(name string) (baseRef, bool) {
	prefix, rest, ok := strings.Cut(name, "base:")
	n, known := a.shards[prefix]
	_, key, named := strings.Cut(rest, ":")
	return baseRef{key, n}, ok && known && named
}

// settle looks at bases until it is known which of them differ, and reports those. It empties refs.
func (a *baseAuditor) settle(ctx context.Context, refs map[baseRef]struct{}) error {
	deadline := time.Now().Add(a.Patience)
	seen := make(map[baseRef]struct{}) // to differ, while no applied window was there
	counted := make(map[int]bool)      // shards whose bases are in a.compared
	for {
		looks, err := a.look(ctx, refs)
		if err != nil {
			return err
		}
		moving := false
		for _, l := range looks {
			if l.fits && !counted[l.shard] {
				counted[l.shard] = true
				a.compared += l.compared
			}
			moving = moving || l.fits
			for _, d := range l.differing {
				ref := baseRef{d.Key, d.Shard}
				if _, again := seen[ref]; !again || l.applied > 0 {
					if l.applied == 0 {
						seen[ref] = struct{}{}
					}
					continue
				}
				if err := a.differs(ctx, d, l.gen); err != nil {
					return err
				}
				delete(refs, ref)
			}
		}
		switch {
		case len(refs) == 0:
			return nil
		case time.Now().After(deadline) && moving:
			return errNotMoved
		case time.Now().After(deadline):
			return errAhead
		}
		if err := pauseAudit(ctx); err != nil {
			return err
		}
	}
}

func pauseAudit(ctx context.Context) error {
	timer := time.NewTimer(auditPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// differs reports a base, and drops it if that was asked for. Its generation may be over by now, and then it is
// unreadable anyway.
func (a *baseAuditor) differs(ctx context.Context, d BaseDifference, gen string) error {
	if err := a.Report(d); err != nil || !a.Drop {
		return err
	}
	name := a.redis.prefix(d.Shard) + "base:" + gen + ":" + d.Key
	if err := a.redis.client.Do(ctx, a.redis.client.B().Unlink().Key(name).Build()).Error(); err != nil {
		return err
	}
	a.Dropped(d)
	return nil
}

// baseLook is one look at bases of one shard.
type baseLook struct {
	shard     int
	fits      bool // Redis and the snapshot of the ledger
	applied   int  // windows that the ledger has and that are still in Redis
	compared  int
	gen       string
	differing []BaseDifference
}

// look compares bases with one snapshot of the ledger. It leaves those in refs that must be looked at again.
func (a *baseAuditor) look(ctx context.Context, refs map[baseRef]struct{}) ([]baseLook, error) {
	byShard, seen := make(map[int][]string), make(map[string]struct{}, len(refs))
	var keys []string
	for ref := range refs {
		byShard[ref.shard] = append(byShard[ref.shard], ref.key)
		if _, ok := seen[ref.key]; !ok {
			seen[ref.key] = struct{}{}
			keys = append(keys, ref.key)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	snapshot, err := a.Ledger.Bases(ctx, keys)
	if err != nil {
		return nil, err
	}
	if len(snapshot.Watermarks) != len(a.redis.meta) {
		return nil, fmt.Errorf("ledger has %d shards, not %d", len(snapshot.Watermarks), len(a.redis.meta))
	}
	rows := indexRows(snapshot.Rows, len(a.redis.meta))
	looks := make([]baseLook, 0, len(byShard))
	for n, keys := range byShard {
		l, err := a.lookAt(ctx, n, snapshot.Watermarks[n], keys, rows)
		if err != nil {
			return nil, err
		}
		looks = append(looks, l)
		if !l.fits {
			continue
		}
		for _, key := range keys {
			delete(refs, baseRef{key, n})
		}
		for _, d := range l.differing {
			refs[baseRef{d.Key, n}] = struct{}{}
		}
	}
	return looks, nil
}

// lookAt runs the script for the keys of one shard.
func (a *baseAuditor) lookAt(ctx context.Context, n int, watermark int64, keys []string, rows map[string]*ledgerKey) (baseLook, error) {
	args := make([]string, 0, 1+3*len(keys))
	args = append(args, strconv.FormatInt(watermark, 10))
	for _, key := range keys {
		total, likes := int64(0), int64(0)
		if k := rows[key]; k != nil {
			total, likes = k.totals[n], k.likes[n]
		}
		args = append(args, key, strconv.FormatInt(total, 10), strconv.FormatInt(likes, 10))
	}
	parts, err := a.redis.run(ctx, a.compare, n, args).ToArray()
	if err != nil {
		return baseLook{}, err
	}
	if len(parts) != 5 {
		return baseLook{}, errAnswer
	}
	fits, err1 := parts[0].AsInt64()
	applied, err2 := parts[1].AsInt64()
	compared, err3 := parts[2].AsInt64()
	gen, err4 := parts[3].ToString()
	differing, err5 := parts[4].AsStrSlice()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return baseLook{}, err
	}
	l := baseLook{shard: n, fits: fits == 1, applied: int(applied), compared: int(compared), gen: gen}
	for ; len(differing) >= 3; differing = differing[3:] {
		i, err := strconv.Atoi(differing[0])
		if err != nil || i < 0 || i >= len(keys) {
			return baseLook{}, errAnswer
		}
		l.differing = append(l.differing, BaseDifference{Shard: n, Key: keys[i], Base: differing[1], Ledger: differing[2]})
	}
	return l, nil
}
