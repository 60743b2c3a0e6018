package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Config configures a Store. Shards and Dedupe must be those of the scripts.
type Config struct {
	Shards int
	Dedupe time.Duration
	// Cluster says that a script may touch one shard only: each shard gets lanes of its own.
	Cluster bool
	// BaseTTL is how long what the ledger holds of a key stays cached in Redis, MissingTTL how long it is
	// remembered that the ledger does not have the key.
	BaseTTL, MissingTTL time.Duration
	// HotThreshold is how many changes a second of one key, on this server, make it hot; 0 spreads no key.
	HotThreshold int
	// HotThresholdOf, if not nil, tells the threshold of a key that has one of its own. It is asked for each key of a
	// batch, by one goroutine for each lane.
	HotThresholdOf func(key string) (threshold int, own bool)
	// WidthOf, if not nil, tells over how many shards a hot key is spread, from its home on; 0 is over all. One that is
	// spread over a single shard stays at home. It is asked when the key is found hot.
	WidthOf func(key string) int
	// FingerprintKey is that of the deployment.
	FingerprintKey counter.FingerprintKey
	// Redeem redeems the tickets of changes together, and returns soon after ctx is done. Nil if no change has one.
	Redeem  func(ctx context.Context, tickets []counter.Ticket)
	Metrics *Metrics
	Logger  *slog.Logger
}

// Store is the live store of sharded mode. It is safe for concurrent use.
type Store struct {
	cfg      Config
	scripts  Scripts
	clock    *clock
	markers  *markers
	metrics  *Metrics
	router   router
	turns    atomic.Uint64
	spreader *spreader
	loader   *loader
	states   *stateLoader
	lately   *latelySet
	pool     jobPool
	counts   countsPool
	writers  []*writer // by lane
	readers  []*reader // by lane
}

// New starts a store. Close it.
func New(scripts Scripts, ledger Ledger, cfg Config) *Store {
	s := &Store{cfg: cfg, scripts: scripts, clock: newClock(), markers: newMarkers(), metrics: cfg.Metrics}
	s.router = router{shards: cfg.Shards, markers: s.markers, clock: s.clock, turn: s.turn}
	s.spreader = newSpreader(s)
	s.loader = newLoader(s, ledger)
	s.states, s.lately = newStateLoader(s, ledger), newLatelySet()
	lanes := 1
	if cfg.Cluster {
		lanes = cfg.Shards
	}
	for range lanes {
		s.writers = append(s.writers, newWriter(s))
		s.readers = append(s.readers, newReader(s))
	}
	s.showQueues()
	return s
}

// showQueues has the metrics show what waits.
func (s *Store) showQueues() {
	queues := groupcommit.Queues{queueBases: {s.loader.queue}, queueLikes: {s.states.queue}}
	for i := range s.writers {
		queues[queueWrites] = append(queues[queueWrites], s.writers[i].queue)
		queues[queueReads] = append(queues[queueReads], s.readers[i].queue)
	}
	s.metrics.queues.Show(queues)
}

// Close refuses new work, finishes what was accepted, bounded by ctx, and stops.
func (s *Store) Close(ctx context.Context) error {
	errs := []error{s.states.queue.Close(ctx)} // which needs the lanes
	for i := range s.writers {
		errs = append(errs, s.writers[i].queue.Close(ctx), s.readers[i].queue.Close(ctx))
	}
	errs = append(errs, s.loader.queue.Close(ctx))
	s.states.likers.close()
	s.spreader.close()
	return errors.Join(errs...)
}

// turn spreads changes without claims over width shards, in runs that are long enough to be merged.
func (s *Store) turn(width int) int {
	const run = 64
	return int(s.turns.Add(1) / run % uint64(width))
}

func (s *Store) lane(shard int) int {
	if s.cfg.Cluster {
		return shard
	}
	return 0
}

// maxRounds bounds how often a change is routed again, or a read continued. Each round but the first follows
// news of a marker, of the clock, or of a base.
const maxRounds = 8

var errUnsettled = errors.New("no agreement with redis on where the key is")

// Apply counts a change. It returns one of the counter package's errors: after counter.ErrInDoubt the
// change may have been counted, in part if it went to several shards of a cluster; after any other error it
// was not, but for a batch across shards of a cluster, each of which takes or refuses its part.
func (s *Store) Apply(ctx context.Context, c counter.Change) (counter.Receipt, error) {
	if c.Like != counter.NoLike {
		return s.applyLike(ctx, &c)
	}
	if c.Reset {
		return s.applyReset(ctx, &c)
	}
	fingerprint := fingerprintOf(&c, &s.cfg.FingerprintKey)
	entries := c.Entries
	var total tally
	var room [1]*job
	for round := 0; len(entries) > 0; round++ {
		if round == maxRounds {
			total.fail(fmt.Errorf("%w: %w", counter.ErrUnavailable, errUnsettled))
			return counter.Receipt{}, total.error()
		}
		jobs := s.jobs(room[:0], &c, entries, fingerprint)
		if known, err := s.claimedAtHome(ctx, &c, &jobs[0].parts[0]); known || err != nil {
			return counter.Receipt{Outcome: counter.Duplicate, AsOf: time.UnixMilli(s.clock.milliseconds() + 1)}, err
		}
		if err := s.submit(jobs); err != nil {
			total.fail(err)
			return counter.Receipt{}, total.error()
		}
		entries = entries[:0:0]
		for _, j := range jobs {
			if err := wait(ctx, j); err != nil {
				total.fail(err)
				continue
			}
			entries = append(entries, total.add(j)...)
			s.pool.put(j)
		}
		if total.err != nil {
			return counter.Receipt{}, total.error()
		}
	}
	return total.receipt(), nil
}

// jobs routes entries of a change, groups them by lane and appends the jobs to a list.
func (s *Store) jobs(jobs []*job, c *counter.Change, entries []counter.Entry, fingerprint string) []*job {
	if len(entries) == 1 {
		j := s.pool.get(c)
		s.router.single(&j.parts[0], c, entries, fingerprint)
		return append(jobs, j)
	}
	parts := s.router.split(c, entries, fingerprint)
	if !s.cfg.Cluster {
		j := s.pool.get(c)
		j.parts = parts
		return append(jobs, j)
	}
	byLane := make(map[int]*job, len(s.writers))
	for _, p := range parts {
		j := byLane[p.shard]
		if j == nil {
			j = s.pool.get(c)
			j.parts = j.parts[:0]
			byLane[p.shard] = j
			jobs = append(jobs, j)
		}
		j.parts = append(j.parts, p)
	}
	return jobs
}

// submit hands jobs to their lanes, all or none: those that a full lane follows are taken back, and if one of
// them is on its way already, the matter is in doubt.
func (s *Store) submit(jobs []*job) error {
	for i, j := range jobs {
		err := s.writers[s.lane(j.parts[0].shard)].queue.Add(j)
		if err == nil {
			continue
		}
		err = queueError(err)
		for _, earlier := range jobs[:i] {
			if !earlier.taken.CompareAndSwap(false, true) {
				err = fmt.Errorf("%w: %w", counter.ErrInDoubt, err)
			}
		}
		return err
	}
	return nil
}

func queueError(err error) error {
	if errors.Is(err, groupcommit.ErrFull) {
		return fmt.Errorf("%w: %w", counter.ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
}

// wait returns when the job is done or the caller leaves. A job that was not sent yet is then never sent.
func wait(ctx context.Context, j *job) error {
	left := j.done.Wait(ctx)
	switch {
	case left == nil:
		return nil
	case j.taken.CompareAndSwap(false, true):
		return callerLeft(left)
	case j.done.Sent(): // at the same time
		return nil
	default:
		return fmt.Errorf("%w: %w", counter.ErrInDoubt, left)
	}
}

// callerLeft is the error of a caller who leaves before its change was sent.
func callerLeft(cause error) error {
	return fmt.Errorf("%w: not sent: %w", counter.ErrUnavailable, cause)
}

// claimedAtHome answers whether a change was counted at the key's home before its once-per claims moved away.
// Only an id without a time needs it, and only for a dedupe window after the start of the first period that
// went elsewhere: any other id has but one place (rule 9). The clock is known and, however late, past all that was
// counted at home: it is in a period that goes elsewhere.
func (s *Store) claimedAtHome(ctx context.Context, c *counter.Change, p *part) (bool, error) {
	if p.once == nil || !p.once.current || !p.id.set || p.spread == 0 {
		return false, nil
	}
	now := s.clock.milliseconds()
	firstAway := counter.PeriodStart(p.spread.Time()+afterMarker, c.OncePer) + p.once.period
	if now > firstAway+(s.cfg.Dedupe+2*counter.MaxEarly).Milliseconds() {
		return false, nil
	}
	claims, err := s.scripts.Claimed(ctx, Home(p.entries[0].Key, s.cfg.Shards), []counter.RequestID{c.RequestID}, now)
	switch {
	case err != nil:
		return false, readError(err)
	case !claims[0].Known:
		return false, nil
	}
	if _, same := p.id.repeated(claims[0].Value, c.Like); !same {
		return false, counter.ErrRequestIDReused
	}
	return true, nil
}

// tally sums up the jobs of a change.
type tally struct {
	applied, duplicate, once bool
	micros                   int64
	batch                    counter.Batch // the last
	err                      error
}

// add takes over a finished job and returns the entries that must be routed again.
func (t *tally) add(j *job) []counter.Entry {
	t.micros = max(t.micros, j.micros)
	if j.batch.Sent.After(t.batch.Sent) {
		t.batch = j.batch
	}
	if j.err != nil {
		t.fail(j.err)
	}
	var again []counter.Entry
	for i := range j.parts {
		switch j.parts[i].outcome {
		case counter.Applied:
			t.applied = true
		case counter.AlreadyCounted:
			t.once = true
		case counter.Duplicate:
			t.duplicate = true
		default:
			if j.err == nil {
				again = append(again, j.parts[i].entries...)
			}
		}
	}
	return again
}

func (t *tally) fail(err error) {
	if t.err == nil || errors.Is(err, counter.ErrInDoubt) {
		t.err = err
	}
}

// error is that of the change as a whole. Where one shard of a cluster has counted its part, now or before, and another
// cannot, the change is in doubt, whatever the reason: to say that it was refused would be to say that nothing of it was
// counted. The reason stays in the error, but whoever tells a caller must look for the doubt first. Only an id that was
// used for another change is told as such.
func (t *tally) error() error {
	counted := t.applied || t.duplicate
	if counted && !errors.Is(t.err, counter.ErrInDoubt) && !errors.Is(t.err, counter.ErrRequestIDReused) {
		return fmt.Errorf("%w: a part of it was counted: %w", counter.ErrInDoubt, t.err)
	}
	return t.err
}

// receipt is that of the change as a whole. Its moment is the next microsecond: a read in the same one may
// have been before.
func (t *tally) receipt() counter.Receipt {
	r := counter.Receipt{Outcome: counter.Duplicate, AsOf: time.UnixMicro(t.micros + 1), Batch: t.batch}
	switch {
	case t.applied:
		r.Outcome = counter.Applied
	case t.once:
		r.Outcome = counter.AlreadyCounted
	}
	return r
}
