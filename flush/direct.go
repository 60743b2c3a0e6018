package flush

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// DirectConfig bounds a Direct. Zero values are replaced by the defaults named.
type DirectConfig struct {
	// MaxQueue is how many entries of changes may wait for the next transaction, how many keys for the next
	// read of counts, and how many for the next of likes; more are refused with counter.ErrOverloaded. 100,000.
	MaxQueue int
	// MaxGroup is how many entries go into one transaction, and how many keys into one read. 10,000.
	MaxGroup int
	// Timeout bounds one attempt at a transaction or a read. 5 s.
	Timeout time.Duration
	// PruneInterval is the pause between rounds of forgetting old claims. 10 s.
	PruneInterval time.Duration
	// Registry takes the metrics, if it is not nil.
	Registry prometheus.Registerer
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

const (
	// commitAttempts is how often a change is tried while the ledger is unavailable.
	commitAttempts = 3
	// retryPause lets a server that restarts come back; it doubles with every attempt.
	retryPause = 50 * time.Millisecond
	// gatherCommits is how many times as long as the last commit the next group may be gathered.
	gatherCommits = 3
	// gatherLongest bounds that, should a commit take long.
	gatherLongest = 10 * time.Millisecond
	// gatherInVain is how often in a row the others may run and add nothing.
	gatherInVain = 3
	// pruneBatch keeps each transaction that forgets claims short.
	pruneBatch = 5_000
)

// Direct is the live store of embedded and direct mode: it changes and reads a ledger directly, putting all
// requests that arrive while a transaction is under way into the next one. Its methods may be called
// concurrently.
type Direct struct {
	ledger  DirectLedger
	cfg     DirectConfig
	metrics *directMetrics

	changes *groupcommit.Queue[*pendingChange]
	reads   *groupcommit.Queue[*pendingRead]
	likes   *groupcommit.Queue[*pendingLikes]

	// added counts the changes that were put into the queue.
	added atomic.Int64

	stopPruning context.CancelFunc
	pruned      chan struct{} // closed when pruning has stopped
}

// NewDirect starts a Direct. It does not close the ledger.
func NewDirect(ledger DirectLedger, cfg DirectConfig) (*Direct, error) {
	cfg.MaxQueue = cmp.Or(cfg.MaxQueue, 100_000)
	cfg.MaxGroup = cmp.Or(cfg.MaxGroup, 10_000)
	cfg.Timeout = cmp.Or(cfg.Timeout, 5*time.Second)
	cfg.PruneInterval = cmp.Or(cfg.PruneInterval, 10*time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	metrics, err := newDirectMetrics(cfg.Registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	d := &Direct{ledger: ledger, cfg: cfg, metrics: metrics, pruned: make(chan struct{})}
	d.changes = groupcommit.New(groupcommit.Config[*pendingChange]{
		MaxQueue: cfg.MaxQueue, MaxBatch: cfg.MaxGroup,
		Weigh: func(p *pendingChange) int { return len(p.change.Entries) },
	}, d.commitGroup)
	d.reads = groupcommit.New(groupcommit.Config[*pendingRead]{
		MaxQueue: cfg.MaxQueue, MaxBatch: cfg.MaxGroup,
		Weigh: func(p *pendingRead) int { return len(p.keys) },
	}, d.readGroup)
	d.likes = groupcommit.New(groupcommit.Config[*pendingLikes]{
		MaxQueue: cfg.MaxQueue, MaxBatch: cfg.MaxGroup,
		Weigh: func(p *pendingLikes) int { return len(p.pairs) },
	}, d.likesGroup)
	metrics.queues.Show(groupcommit.Queues{waitingChanges: {d.changes}, waitingReads: {d.reads}, waitingLikes: {d.likes}})
	ctx, cancel := context.WithCancel(context.Background())
	d.stopPruning = cancel
	go d.pruneLoop(ctx)
	return d, nil
}

// Close refuses new requests, answers those that wait and stops. Once ctx is done, transactions under way
// are given up, and what waits is refused.
func (d *Direct) Close(ctx context.Context) error {
	d.stopPruning()
	err := errors.Join(d.changes.Close(ctx), d.reads.Close(ctx), d.likes.Close(ctx))
	<-d.pruned
	return err
}

// queueError says why a queue did not take a request.
func queueError(err error) error {
	if errors.Is(err, groupcommit.ErrFull) {
		return fmt.Errorf("%w: %w", counter.ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
}

// pendingChange is a change on its way through the queue.
type pendingChange struct {
	change counter.Change
	// state settles who comes first: the transaction that takes the change, or the caller who leaves.
	state atomic.Int32
	done  chan struct{} // closed when receipt and err are set
	// doubt is the error of an attempt that may have been committed.
	doubt   error
	receipt counter.Receipt
	err     error
}

// The states of a pendingChange.
const (
	changeWaits int32 = iota
	changeTaken
	changeLeft
)

// Apply applies a change and returns when it is committed. The change must not be modified from then on, since
// a transaction may go on after the caller has left. If ctx is done while the change still waits for
// a transaction, it is not applied, which is counter.ErrUnavailable; after that it is in doubt. If an
// attempt's answer was lost, a change with a request id is tried again; its receipt then says Duplicate if
// that attempt, or another call, had counted it.
func (d *Direct) Apply(ctx context.Context, change counter.Change) (counter.Receipt, error) {
	if ctx.Err() != nil {
		return counter.Receipt{}, notSent(context.Cause(ctx))
	}
	p := &pendingChange{change: change, done: make(chan struct{})}
	if err := d.changes.Add(p); err != nil {
		return counter.Receipt{}, queueError(err)
	}
	d.added.Add(1)
	left := deadline.Wait(ctx, p.done)
	if left == nil {
		return p.receipt, p.err
	}
	if p.state.CompareAndSwap(changeWaits, changeLeft) {
		return counter.Receipt{}, notSent(left)
	}
	select {
	case <-p.done: // the answer came at the same time
		return p.receipt, p.err
	default:
		return counter.Receipt{}, fmt.Errorf("%w: %w", counter.ErrInDoubt, left)
	}
}

// notSent is the error of a caller who left before its change was taken, for a cause.
func notSent(left error) error {
	return fmt.Errorf("%w: not sent: %w", counter.ErrUnavailable, left)
}

// commitGroup settles all changes of a batch. Those that can be repeated safely are, a few times: all of
// them after an error that left the ledger unchanged, those with a request id after one in doubt.
func (d *Direct) commitGroup(ctx context.Context, batch []*pendingChange) {
	pending := make([]*pendingChange, 0, len(batch))
	for _, p := range batch {
		if p.state.CompareAndSwap(changeWaits, changeTaken) {
			pending = append(pending, p)
		}
	}
	for attempt := 1; len(pending) > 0; attempt++ {
		err := d.commit(ctx, pending)
		if err == nil {
			return
		}
		again := attempt < commitAttempts && (errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt))
		pending = d.afterError(pending, err, again)
		if len(pending) > 0 && !pause(ctx, retryPause<<(attempt-1)) {
			pending = d.afterError(pending, err, false)
		}
	}
}

// commit makes one attempt, and settles all changes if it succeeds.
func (d *Direct) commit(ctx context.Context, pending []*pendingChange) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	changes := make([]counter.Change, len(pending))
	for i, p := range pending {
		changes[i] = p.change
	}
	start := time.Now()
	verdicts, asOf, err := d.ledger.Commit(ctx, changes)
	took := time.Since(start)
	d.metrics.commitSeconds.Observe(took.Seconds())
	if err != nil {
		d.metrics.countError(err)
		return err
	}
	d.metrics.groupChanges.Observe(float64(len(pending)))
	for i, p := range pending {
		p.settle(verdicts[i], asOf, counter.Batch{Sent: start, Changes: len(pending)})
	}
	d.gather(min(gatherCommits*took, gatherLongest))
	return nil
}

// gather lets the others of a busy process run before the next group is taken, so that what they are about to add goes
// into it: without that, a group is often the few changes that came while the commit waited for the disk, and costs
// nearly as much as a large one. It ends when they have nothing to add, at once if none is to run, and delays
// a change by no more than longest.
func (d *Direct) gather(longest time.Duration) {
	began, added := time.Now(), d.added.Load()
	for vain := 0; vain < gatherInVain && time.Since(began) < longest; vain++ {
		runtime.Gosched()
		if n := d.added.Load(); n != added {
			added, vain = n, -1
		}
	}
}

// afterError answers the changes that are not tried again, and returns those that are.
func (d *Direct) afterError(pending []*pendingChange, err error, again bool) []*pendingChange {
	inDoubt := errors.Is(err, counter.ErrInDoubt)
	var repeat []*pendingChange
	for _, p := range pending {
		if inDoubt {
			p.doubt = err
		}
		if again && (!inDoubt || !p.change.RequestID.IsZero()) {
			repeat = append(repeat, p)
			continue
		}
		p.err = cmp.Or(p.doubt, err) // what was in doubt once stays so, whatever came after
		close(p.done)
	}
	return repeat
}

func (p *pendingChange) settle(v Verdict, asOf time.Time, batch counter.Batch) {
	switch {
	case v.Err == nil:
		p.receipt = counter.Receipt{Outcome: v.Outcome, AsOf: asOf, Changed: v.Changed, Batch: batch}
	case p.doubt != nil && errors.Is(v.Err, counter.ErrRequestIDExpired):
		// The id expired between two attempts, so it is not known any more what the first one did.
		p.err = p.doubt
	default:
		p.err = v.Err
	}
	close(p.done)
}

// pause waits, and reports whether ctx still runs.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pruneLoop forgets claims, in rounds that end when nothing is left to forget.
func (d *Direct) pruneLoop(ctx context.Context) {
	defer close(d.pruned)
	for pause(ctx, d.cfg.PruneInterval) {
		for d.prune(ctx) {
		}
	}
}

// prune reports whether there may be more to forget.
func (d *Direct) prune(ctx context.Context) bool {
	timed, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	n, err := d.ledger.PruneClaims(timed, pruneBatch)
	d.metrics.prunedClaims.Add(float64(n))
	if err != nil && ctx.Err() == nil {
		d.cfg.Logger.Warn("old claims could not be forgotten and will be later", slog.Any("error", err))
	}
	return err == nil && n == pruneBatch
}
