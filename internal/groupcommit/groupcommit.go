// Package groupcommit combines items that arrive while a batch is under way into the next batch. An idle queue runs
// an item at once, a busy one forms larger batches. It can be told to let them gather while it is busy.
package groupcommit

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Errors of Add. The item was not taken.
var (
	// ErrFull: as much is waiting as may wait.
	ErrFull = errors.New("groupcommit: queue is full")
	// ErrClosed: the queue was closed.
	ErrClosed = errors.New("groupcommit: queue is closed")
)

// Config bounds a queue.
type Config[T any] struct {
	// MaxQueue is the weight that may wait, not counting the batch under way. An item that alone is
	// heavier is taken only while nothing waits.
	MaxQueue int
	// MaxBatch is the weight of a batch. An item that alone is heavier makes a batch of its own.
	MaxBatch int
	// Weigh is the weight of an item, at least 1 and the same whenever it is asked; it is called with a
	// lock held. Nil weighs every item as 1.
	Weigh func(T) int
	// Gather is for queues whose batches have a price of their own. Zero never waits.
	Gather Gather
	// Yield lets goroutines go first that are ready to run when a batch could be taken, as some of them may have items for
	// it. Unlike Gather it waits for nothing that may not come.
	Yield bool
}

// Gather lets a batch of a busy queue wait for more items: until the weight Enough is there, or most of the items that can
// be expected, and for Wait at most. Busy is a queue to which a quarter of Enough comes in each Wait.
//
// What can be expected is known from the last batch. A caller who waits for an answer has one item: when a batch has ended,
// those whom it answered may add one each, and the others' are in the queue. Most are three quarters of both: to wait for all
// would be to wait for the slowest, and for some who never come.
//
// Items that come at a steady rate, whatever is answered, wait for about twice as long as a batch takes. If it takes t, and
// began c after the one before, both are what comes in c+t, and the next one begins 3/4(c+t) after it: this settles at 3t.
type Gather struct {
	Enough int
	Wait   time.Duration
}

// Queue runs batches one after the other on a goroutine of its own. Its methods may be called
// concurrently.
type Queue[T any] struct {
	cfg    Config[T]
	run    func(ctx context.Context, batch []T)
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	wake   sync.Cond // the runner waits here while nothing waits
	idle   bool      // the runner is waiting
	closed bool
	items  []T // items[:head] were taken
	head   int
	weight int // of items[head:]
	// added and ran count items; flushes are in the order of what they wait for.
	added, ran uint64
	flushes    []flush
	// refused counts items that found no room.
	refused uint64

	// enough gets a message when enough is waiting, if the runner waits for that.
	enough    chan struct{}
	gathering bool
	most      int // so many items are enough too, whatever they weigh
	// What follows is used by the runner alone.
	pace pace
	last int // items of the last batch
}

// flush waits until so many items have run.
type flush struct {
	after uint64
	done  chan struct{}
}

// pace tells whether a queue is busy, by the weight that was taken in a period.
type pace struct {
	since time.Time
	taken int
	busy  bool
}

// periodWaits is how many times Gather.Wait a period has.
const periodWaits = 8

// New starts a queue. Run gets every item that Add took exactly once, in the order in which they were
// added; the batch's memory is reused once run has returned. Run must return soon after its context is
// done, and must still settle the items that it is given then.
func New[T any](cfg Config[T], run func(ctx context.Context, batch []T)) *Queue[T] {
	ctx, cancel := context.WithCancel(context.Background())
	q := &Queue[T]{cfg: cfg, run: run, cancel: cancel, done: make(chan struct{}), enough: make(chan struct{}, 1)}
	q.pace.since = time.Now()
	q.wake.L = &q.mu
	go q.loop(ctx)
	return q
}

// Add puts an item in line for the next batch. It never waits.
func (q *Queue[T]) Add(item T) error {
	w := q.weigh(item)
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	if q.weight > 0 && q.weight+w > q.cfg.MaxQueue {
		q.refused++
		q.mu.Unlock()
		return ErrFull
	}
	q.items = append(q.items, item)
	q.weight += w
	q.added++
	idle := q.idle
	q.idle = false
	q.endWait()
	q.mu.Unlock()
	if idle {
		q.wake.Signal()
	}
	return nil
}

// Stats are what a queue is asked for by metrics.
type Stats struct {
	// Waiting is how many items wait for the next batches.
	Waiting int
	// Fill is their weight as a part of MaxQueue. Above 1 it is one item that alone is heavier.
	Fill float64
	// Refused counts the items that Add refused with ErrFull.
	Refused uint64
}

// Stats returns the state of the moment.
func (q *Queue[T]) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{
		Waiting: len(q.items) - q.head, Fill: float64(q.weight) / float64(max(q.cfg.MaxQueue, 1)), Refused: q.refused,
	}
}

// Close refuses new items, runs those that wait and returns when the last batch has ended. If ctx is done
// first, it cancels the context of the batches under way and to come, waits for them to end and returns
// the cause. Later calls wait for the same end.
func (q *Queue[T]) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.endWait()
	q.mu.Unlock()
	q.wake.Signal()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
	}
	q.cancel()
	<-q.done
	return context.Cause(ctx)
}

// Flush ends the wait of a batch that gathers, and returns when all that was added before has run, or ctx is done. It is for whoever
// knows that nothing else is to come before that.
func (q *Queue[T]) Flush(ctx context.Context) {
	q.mu.Lock()
	if q.ran == q.added {
		q.mu.Unlock()
		return
	}
	f := flush{after: q.added, done: make(chan struct{})}
	q.flushes = append(q.flushes, f)
	q.endWait()
	q.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

// hasRun counts the items of a batch, and tells those who wait for them.
func (q *Queue[T]) hasRun(items int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ran += uint64(items)
	for len(q.flushes) > 0 && q.flushes[0].after <= q.ran {
		close(q.flushes[0].done)
		q.flushes = slices.Delete(q.flushes, 0, 1)
	}
}

func (q *Queue[T]) loop(ctx context.Context) {
	defer close(q.done)
	defer q.cancel()
	var batch []T
	for {
		q.gather()
		if q.cfg.Yield {
			q.yield()
		}
		batch = q.take(batch)
		if len(batch) == 0 {
			return
		}
		q.run(ctx, batch)
		q.hasRun(len(batch))
		q.last = len(batch)
		clear(batch) // or what the items refer to would live until the next batch
		batch = batch[:0]
	}
}

// gather lets a batch gather if the queue is busy.
func (q *Queue[T]) gather() {
	g := q.cfg.Gather
	if g.Wait == 0 {
		return
	}
	now := time.Now()
	if period := now.Sub(q.pace.since); period >= periodWaits*g.Wait {
		q.pace = pace{since: now, busy: int64(q.pace.taken)*int64(g.Wait)*4 >= int64(g.Enough)*int64(period)}
	}
	if !q.pace.busy {
		return
	}
	q.mu.Lock()
	q.most = max(1, (q.last+len(q.items)-q.head)*3/4)
	q.gathering = !q.gathered()
	gathering := q.gathering
	q.mu.Unlock()
	if !gathering {
		return
	}
	timer := time.NewTimer(g.Wait)
	defer timer.Stop()
	select {
	case <-q.enough:
		return
	case <-timer.C:
	}
	q.mu.Lock()
	late := !q.gathering
	q.gathering = false
	q.mu.Unlock()
	if late { // whoever ended it meanwhile says so
		<-q.enough
	}
}

// gathered reports whether a batch need not wait. The caller holds mu.
func (q *Queue[T]) gathered() bool {
	return q.weight >= q.cfg.Gather.Enough || len(q.items)-q.head >= q.most || len(q.flushes) > 0 || q.closed
}

// endWait ends the wait of a batch that need not wait any more. The caller holds mu.
func (q *Queue[T]) endWait() {
	if q.gathering && q.gathered() {
		q.gathering = false
		q.enough <- struct{}{} // there is room, as each wait is ended once
	}
}

// yield lets others go first once something waits.
func (q *Queue[T]) yield() {
	q.mu.Lock()
	q.await()
	q.mu.Unlock()
	runtime.Gosched()
}

// await waits for an item, or for the queue to be closed. The caller holds mu.
func (q *Queue[T]) await() {
	for q.head == len(q.items) && !q.closed {
		q.idle = true
		q.wake.Wait()
	}
}

// take waits for items and moves up to MaxBatch of their weight to batch. It returns an empty batch when
// the queue is closed and nothing waits.
func (q *Queue[T]) take(batch []T) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.await()
	end, weight := q.head, 0
	for end < len(q.items) {
		w := q.weigh(q.items[end])
		if end > q.head && weight+w > q.cfg.MaxBatch {
			break
		}
		weight += w
		end++
	}
	batch = append(batch, q.items[q.head:end]...)
	clear(q.items[q.head:end])
	q.head = end
	q.weight -= weight
	q.pace.taken += weight
	// What is left moves to the front when it is the smaller part, so an item is moved once on average.
	if left := len(q.items) - end; left <= end {
		copy(q.items, q.items[end:])
		clear(q.items[left:])
		q.items, q.head = q.items[:left], 0
	}
	return batch
}

func (q *Queue[T]) weigh(item T) int {
	if q.cfg.Weigh == nil {
		return 1
	}
	return q.cfg.Weigh(item)
}
