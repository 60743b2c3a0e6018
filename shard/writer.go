package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/failpoint"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Limits of a write lane.
const (
	// writeAttempt is how long the first attempt waits for its answer, and writeAgain how long each other: its
	// connection is lost with the answer, and a new one takes a slow Redis as long as an answer does.
	writeAttempt = time.Second
	writeAgain   = 2 * time.Second
	// writeBudget is how long attempts begin before the callers of a batch hear of it. With writeAgain it is below
	// batchLifetime, so that the last attempt still meets the claim of the first.
	writeBudget = 2 * time.Second
	// unsentBudget is the same for a batch that cannot have been applied.
	unsentBudget = 300 * time.Millisecond
	// maxBatchEntries and maxQueueEntries bound a batch, and what waits for the next ones.
	maxBatchEntries = 8_192
	maxQueueEntries = 262_144
	// A batch has a price of its own, above all for Redis, which looks at each shard. So a server that gets more than
	// 8,000 changes of one key a second, each of which weighs 2, lets 128 of them gather.
	gatherWeight = 256
	// gatherWait is how long likes and reads gather at most, too.
	gatherWait = 4 * time.Millisecond
	// lateLimit is how often a batch is made again because its time was off.
	lateLimit = 3
)

// job is the part of a change that goes to one lane.
type job struct {
	change counter.Change
	parts  []part
	// taken decides between the lane, which sends the job, and its caller, who may leave before.
	taken atomic.Bool
	// alone: the job is sent by itself, because merged with others it might overflow, or as it is a reset.
	alone bool
	done  *deadline.Signal // sent when the result is there

	// The result, for the caller once it was told that the job is done.
	err     error
	reroute bool // nothing that is unsettled was applied, and its routing has changed
	micros  int64
	batch   counter.Batch
	count   *counter.Count // of a like, if it was read along

	single [1]part // parts, if there is but one
}

// jobPool has jobs that are used again, as most of what a change costs in memory is in them.
type jobPool struct{ pool sync.Pool }

// get returns a job with one part, which is zero.
func (p *jobPool) get(c *counter.Change) *job {
	j, ok := p.pool.Get().(*job)
	if !ok {
		j = &job{done: deadline.NewSignal()}
	}
	j.change, j.parts = *c, j.single[:]
	return j
}

// put takes back a job that is done, of which its caller was told, and whose results were read. One whose caller has
// left stays with the lane or the state loader.
func (p *jobPool) put(j *job) {
	done := j.done
	done.Reset()
	*j = job{done: done}
	p.pool.Put(j)
}

func (j *job) weight() int { return len(j.parts) + len(j.change.Entries) }

func (j *job) finish(err error) {
	j.err = err
	j.done.Send()
}

func (j *job) settled() bool {
	for i := range j.parts {
		if j.parts[i].outcome == 0 {
			return false
		}
	}
	return true
}

// writer is a write lane: all shards of a standalone Redis, or one shard of a cluster. It sends one batch at a
// time.
type writer struct {
	scripts Scripts
	dedupe  int64 // ms
	clock   *clock
	markers *markers
	metrics *Metrics
	hot     *hotDetector
	onHot   func(key string)
	redeem  func(ctx context.Context, tickets []counter.Ticket)
	queue   *groupcommit.Queue[*job]

	// Used by run alone.
	batch *batch
	sent  time.Time // when the batch was, for the last time
	rest  []*job
	next  []*job
	// tickets of the jobs.
	tickets []counter.Ticket
	liked   *likedCounts
}

func newWriter(s *Store) *writer {
	w := &writer{
		scripts: s.scripts, dedupe: s.cfg.Dedupe.Milliseconds(), clock: s.clock, markers: s.markers, metrics: s.metrics,
		hot: newHotDetector(s.cfg.HotThreshold, s.cfg.HotThresholdOf), onHot: s.spreader.add, redeem: s.cfg.Redeem, batch: newBatch(s.cfg.Shards),
		liked: newLikedCounts(s),
	}
	w.queue = groupcommit.New(groupcommit.Config[*job]{
		MaxQueue: maxQueueEntries, MaxBatch: maxBatchEntries, Weigh: (*job).weight,
		Gather: groupcommit.Gather{Enough: gatherWeight, Wait: gatherWait}, Yield: true,
	}, w.run)
	return w
}

// run settles all jobs. Each round sends one batch and settles at least one job, or finds out that a job must
// go alone.
func (w *writer) run(ctx context.Context, jobs []*job) {
	w.redeemAll(ctx, jobs)
	w.rest = w.rest[:0]
	for _, j := range jobs {
		switch {
		case !j.taken.CompareAndSwap(false, true):
		case j.change.Ticket != nil && j.change.Ticket.Refused() != nil:
			j.finish(j.change.Ticket.Refused())
		default:
			w.rest = append(w.rest, j)
		}
	}
	for len(w.rest) > 0 {
		w.batch.reset()
		w.next = w.next[:0]
		for _, j := range w.rest {
			if len(w.batch.jobs) > 0 && (j.alone || w.batch.jobs[0].alone) || !w.batch.join(j) {
				w.next = append(w.next, j)
			}
		}
		w.next = append(w.next, w.send(ctx)...)
		w.rest, w.next = w.next, w.rest
	}
	clear(w.rest[:cap(w.rest)])
	clear(w.next[:cap(w.next)])
}

// redeemAll redeems the tickets of jobs whose callers have not left, but for those of changes that are routed again.
func (w *writer) redeemAll(ctx context.Context, jobs []*job) {
	for _, j := range jobs {
		if t := j.change.Ticket; t != nil && !t.Redeemed() && !j.taken.Load() {
			w.tickets = append(w.tickets, t)
		}
	}
	if len(w.tickets) > 0 && w.redeem != nil {
		w.redeem(ctx, w.tickets)
	}
	clear(w.tickets)
	w.tickets = w.tickets[:0]
}

// send sends the batch and settles its jobs; it returns those that must be sent again.
func (w *writer) send(ctx context.Context) []*job {
	var reply WriteReply
	for late := 0; ; late++ {
		var lost bool
		var err error
		reply, lost, err = w.attempt(ctx, w.batch.seal(w.clock.milliseconds(), w.liked.ask(w.batch.jobs)))
		if err == nil {
			w.clock.sync(reply.Micros)
			if reply.Status != WriteLate {
				break
			}
			if !lost && late < lateLimit {
				continue // nothing was applied, and now the clock is known
			}
			err = errLate
		}
		err = writeError(err, lost)
		for _, j := range w.batch.jobs {
			j.finish(err)
		}
		return nil
	}
	failpoint.Hit(failpoint.WriteAnswered)
	if reply.Status == WriteApplied {
		w.applied(reply)
		return nil
	}
	return w.refused(reply)
}

var errLate = errors.New("redis clock disagrees with the time of the batch")

// attempt sends a batch until it is answered, for a bounded time. Lost reports that an attempt may have been
// applied without its answer having arrived.
func (w *writer) attempt(ctx context.Context, b *WriteBatch) (reply WriteReply, lost bool, err error) {
	start := time.Now()
	pause, timeout := 5*time.Millisecond, writeAttempt
	for {
		attempt, cancel := context.WithTimeout(ctx, timeout)
		w.sent = time.Now()
		reply, err = w.scripts.Write(attempt, b)
		cancel()
		w.metrics.script(scriptWrite, w.sent, err)
		if err == nil {
			return reply, lost, nil
		}
		budget := writeBudget
		switch classify(err) {
		case refusedFull, broken:
			return reply, lost, err
		case lostAnswer:
			lost = true
		case notSent, refusedNow:
			if !lost {
				budget = unsentBudget
			}
		}
		if time.Since(start)+pause > budget {
			return reply, lost, err
		}
		b.Counts, timeout = nil, writeAgain // what had no answer is sent again by itself
		w.metrics.retries.Inc()
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return reply, lost, err
		case <-timer.C:
		}
		pause = min(2*pause, 200*time.Millisecond)
	}
}

// writeError is how a batch that was not answered is reported to its callers.
func writeError(err error, lost bool) error {
	kind := counter.ErrUnavailable
	switch {
	case lost:
		kind = counter.ErrInDoubt
	case errors.Is(err, errLate):
	case classify(err) == refusedFull:
		kind = counter.ErrFull
	case classify(err) == broken:
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

func (w *writer) applied(reply WriteReply) {
	w.metrics.batchChanges.Observe(float64(len(w.batch.jobs)))
	w.hot.begin(time.Now())
	likes := reply.Likes
	for _, n := range w.batch.used {
		s := w.batch.shards[n]
		for i := range s.entries {
			w.count(s.entries[i].Key, s.changes[i])
		}
		for i, p := range s.likers {
			if i < len(likes) { // as it is, unless the script is another one
				p.liked(likes[i])
			}
			if p.outcome != 0 {
				w.count(s.likes[i].Key, 1)
			}
		}
		likes = likes[min(len(likes), len(s.likers)):]
	}
	w.liked.takeOver(reply.Counts)
	sent := counter.Batch{Sent: w.sent, Changes: len(w.batch.jobs)}
	for _, j := range w.batch.jobs {
		j.micros, j.batch, j.count = reply.Micros, sent, w.liked.of(j)
		var err error
		for i := range j.parts {
			p := &j.parts[i]
			switch {
			case j.change.Like == counter.NoLike && p.outcome == 0:
				p.outcome = counter.Applied
			case p.overflows:
				err = counter.ErrOverflow
			}
		}
		j.finish(err)
	}
}

// liked takes over what became of a like. What is still unknown leaves the part unsettled.
func (p *part) liked(result LikeResult) {
	switch result {
	case LikeChanged, LikeUnchanged:
		p.outcome, p.changed = counter.Applied, result == LikeChanged
	case LikeOverflows:
		p.overflows = true
	case LikeUnknown:
	}
}

// count counts changes of a key, which may make it hot.
func (w *writer) count(key string, changes int) {
	if w.hot.add(key, changes) && w.markers.get(key) == 0 {
		w.onHot(key)
	}
}

// refused settles the jobs for which the batch was refused and returns the others.
func (w *writer) refused(reply WriteReply) []*job {
	w.metrics.refusals.Inc()
	type place struct {
		shard int
		key   string
	}
	moved, overflowing := map[place]bool{}, map[place]bool{}
	for _, m := range reply.Moved {
		shard, key := w.batch.entry(m.EntryRef)
		moved[place{shard, key}] = true
		w.markers.learn(key, m.Marker)
	}
	for _, ref := range reply.Overflowing {
		shard, key := w.batch.entry(ref)
		overflowing[place{shard, key}] = true
	}
	for _, k := range reply.Known {
		if p, isID := w.batch.owner(k); isID {
			p.refusal.idKnown, p.refusal.id = true, k.Value
		} else {
			p.refusal.onceKnown = true
		}
	}
	for _, a := range reply.Aged {
		s := w.batch.shards[w.batch.used[a.Shard]]
		for _, p := range s.owners[a.Group] {
			if s.groups[a.Group].Kind == ClaimOnce {
				p.refusal.periodIsPast = true
			} else {
				p.refusal.idAged, p.refusal.lost = true, a.Lost
			}
		}
	}
	var again []*job
	alone := len(w.batch.jobs) == 1
	sent := counter.Batch{Sent: w.sent, Changes: len(w.batch.jobs)}
	for _, j := range w.batch.jobs {
		j.micros, j.batch = reply.Micros, sent
		err := j.decide(reply.Micros/1000, w.dedupe)
		for i := range j.parts {
			p := &j.parts[i]
			for k := 0; k < len(p.entries) && p.outcome == 0 && err == nil; k++ {
				at := place{p.shard, p.entries[k].Key}
				j.reroute = j.reroute || moved[at]
				if overflowing[at] {
					if alone && !j.reroute {
						err = counter.ErrOverflow
						if j.change.Reset {
							err = errNotCached
						}
					}
					j.alone = true
				}
			}
			p.refusal.idKnown, p.refusal.onceKnown, p.refusal.idAged, p.refusal.periodIsPast = false, false, false, false
		}
		switch {
		case err != nil || j.settled():
			j.reroute = false
			j.finish(err)
		case j.reroute:
			j.finish(nil)
		default:
			again = append(again, j)
		}
	}
	return again
}

// decide settles the parts of a job whose claims were refused, at the time now. An error refuses the job as a
// whole.
func (j *job) decide(now, dedupe int64) error {
	for i := range j.parts {
		p := &j.parts[i]
		if p.outcome != 0 {
			continue
		}
		r := &p.refusal
		timed := p.id.kind == ClaimTimed
		switch {
		case r.idAged && timed && p.id.time < now-dedupe:
			return counter.ErrRequestIDExpired
		case r.idAged && timed && p.id.time > now+counter.MaxEarly.Milliseconds():
			return counter.ErrRequestIDEarly
		case r.idKnown:
			var same bool
			if p.changed, same = p.id.repeated(r.id, j.change.Like); !same {
				return counter.ErrRequestIDReused
			}
			p.outcome = counter.Duplicate
		case r.idAged && (!timed || p.id.time <= r.lost):
			// Nobody knows any more whether the id was counted before Redis went back in time.
			return counter.ErrRequestIDExpired
		case r.periodIsPast:
			j.reroute = true
		case r.onceKnown:
			p.outcome = counter.AlreadyCounted
		}
	}
	return nil
}
