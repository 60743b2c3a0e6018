package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Limits of the loader.
const (
	loadAttempt = 3 * time.Second
	// loadTries is how often the ledger is read again because a window was being moved meanwhile.
	loadTries       = 8
	maxLoadBatch    = 4_000
	maxQueuedLoads  = 65_536
	loadChunk       = 1_000 // bases per script
	ttlJitterDivide = 8     // bases loaded together do not expire together
	// keepFinished is how long a finished load is remembered. A reader that was told before it finished that
	// the base is missing need not load it again; no read takes longer to come back.
	keepFinished = 2 * readAttempts * readAttempt
	// maxFinished bounds their memory. Beyond it a base may be loaded once more than needed.
	maxFinished = maxQueuedLoads
)

// loader caches missing bases (rule 8). Loads that arrive while one is under way share the next query to the
// ledger, and a base that is being loaded is not loaded again.
type loader struct {
	scripts    Scripts
	ledger     Ledger
	ttl        time.Duration
	missingTTL time.Duration
	shards     int
	metrics    *Metrics
	queue      *groupcommit.Queue[*baseLoad]

	mu       sync.Mutex
	loads    map[baseRef]*baseLoad // under way, or finished without an error
	finished []*baseLoad           // oldest first
}

// baseRef names the base of a key on a shard.
type baseRef struct {
	key   string
	shard int
}

// baseLoad is a load. Err is set before done is closed.
type baseLoad struct {
	ref  baseRef
	err  error
	done chan struct{}
	at   time.Time // when it finished; zero while it is under way
}

func newLoader(s *Store, ledger Ledger) *loader {
	l := &loader{
		scripts: s.scripts, ledger: ledger, ttl: s.cfg.BaseTTL, missingTTL: s.cfg.MissingTTL, shards: s.cfg.Shards,
		metrics: s.metrics, loads: map[baseRef]*baseLoad{},
	}
	l.queue = groupcommit.New(groupcommit.Config[*baseLoad]{MaxQueue: maxQueuedLoads, MaxBatch: maxLoadBatch}, l.run)
	return l
}

// start begins to load a base that was missing in a read that began at the given time, or joins the load that
// has been under way since.
func (l *loader) start(ref baseRef, asked time.Time) (*baseLoad, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if load := l.loads[ref]; load != nil && (load.at.IsZero() || load.at.After(asked)) {
		return load, nil
	}
	load := &baseLoad{ref: ref, done: make(chan struct{})}
	if err := l.queue.Add(load); err != nil {
		return nil, queueError(err)
	}
	l.loads[ref] = load
	return load, nil
}

func (l *loader) run(ctx context.Context, loads []*baseLoad) {
	ctx, cancel := context.WithTimeout(ctx, loadAttempt)
	defer cancel()
	started := time.Now()
	err := l.load(ctx, loads)
	l.metrics.load(started, len(loads), err)
	l.settle(loads, err)
	for _, load := range loads {
		load.err = err
		close(load.done)
	}
}

// settle moves loads from those under way to those finished, and forgets old ones.
func (l *loader) settle(loads []*baseLoad, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, load := range loads {
		load.at = now
		if err != nil {
			delete(l.loads, load.ref)
		}
	}
	if err == nil {
		l.finished = append(l.finished, loads...)
	}
	old := 0
	for len(l.finished)-old > maxFinished || old < len(l.finished) && now.Sub(l.finished[old].at) > keepFinished {
		if load := l.finished[old]; l.loads[load.ref] == load {
			delete(l.loads, load.ref)
		}
		old++
	}
	l.finished = slices.Delete(l.finished, 0, old)
}

var errMoving = errors.New("windows were moved while the ledger was read, again and again")

func (l *loader) load(ctx context.Context, loads []*baseLoad) error {
	keys := make([]string, 0, len(loads))
	wanted := make([][]string, l.shards)
	seen := make(map[string]struct{}, len(loads))
	for _, load := range loads {
		wanted[load.ref.shard] = append(wanted[load.ref.shard], load.ref.key)
		if _, ok := seen[load.ref.key]; !ok {
			seen[load.ref.key] = struct{}{}
			keys = append(keys, load.ref.key)
		}
	}
	for range loadTries {
		snapshot, err := l.ledger.Bases(ctx, keys)
		if err != nil {
			return err
		}
		if len(snapshot.Watermarks) != l.shards {
			return fmt.Errorf("ledger has %d shards, not %d", len(snapshot.Watermarks), l.shards)
		}
		failpoint.Hit(failpoint.LoadBefore)
		rows := indexRows(snapshot.Rows, l.shards)
		left := false
		for shard, keys := range wanted {
			for len(keys) > 0 {
				chunk := keys[:min(loadChunk, len(keys))]
				sent := time.Now()
				ok, err := l.scripts.Load(ctx, shard, snapshot.Watermarks[shard], l.bases(rows, shard, chunk))
				l.metrics.script(scriptLoad, sent, err)
				if err != nil {
					return readError(err)
				}
				if !ok {
					left = true
					break
				}
				keys = keys[len(chunk):]
			}
			wanted[shard] = keys
		}
		if !left {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", counter.ErrUnavailable, errMoving)
}

// ledgerKey is what the ledger holds of one key.
type ledgerKey struct {
	totals map[int]int64 // by shard
	likes  map[int]int64 // by shard
	marker Marker
}

func indexRows(rows []LedgerRow, shards int) map[string]*ledgerKey {
	keys := make(map[string]*ledgerKey, len(rows))
	for _, row := range rows {
		k := keys[row.Key]
		if k == nil {
			k = &ledgerKey{totals: make(map[int]int64, 1), likes: make(map[int]int64, 1)}
			keys[row.Key] = k
		}
		k.totals[row.Shard], k.likes[row.Shard] = row.Total, row.Likes
		k.marker = max(k.marker, row.Spread) // which only the home's row has
	}
	for name, k := range keys {
		if _, atHome := k.totals[Home(name, shards)]; k.marker == 0 && (len(k.totals) > 1 || !atHome) {
			// Rows away from home imply a marker that was lost before it reached the ledger: as it was young, ids had not
			// left home by it. Those that were counted at home before are still met there, or refused for the rollback.
			k.marker = ImpliedMarker
		}
	}
	return keys
}

func (l *loader) bases(rows map[string]*ledgerKey, shard int, keys []string) []Base {
	bases := make([]Base, len(keys))
	for i, key := range keys {
		bases[i] = Base{Key: key, TTL: l.missingTTL}
		if k := rows[key]; k != nil {
			bases[i].Total, bases[i].Likes = k.totals[shard], k.likes[shard]
			bases[i].TTL = l.ttl
			if Home(key, l.shards) == shard {
				bases[i].Marker = k.marker
			}
		}
		bases[i].TTL -= rand.N(bases[i].TTL/ttlJitterDivide + 1)
	}
	return bases
}
