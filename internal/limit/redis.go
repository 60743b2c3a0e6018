package limit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/groupcommit"
)

const (
	// scriptTimeout bounds a script. A call waits for the one under way and for its own.
	scriptTimeout = time.Second
	// maxBatchBuckets keeps a script below some two milliseconds.
	maxBatchBuckets = 1_000
	// A server that gets many changes a second lets them gather: a script costs server and Redis as much as taking from a
	// few dozen buckets, and after it the changes go into the same batch of the store.
	gatherBuckets = 256
	gatherWait    = 4 * time.Millisecond
	// maxQueuedBuckets is what may wait: more than a server has requests under way.
	maxQueuedBuckets = 200_000
)

//go:embed take.lua
var takeScript string

// RedisConfig configures a Redis limiter.
type RedisConfig struct {
	// Tags are the hash tags over whose slots buckets are spread.
	Tags []string
	// Cluster says that a script may touch one slot only.
	Cluster bool
	Metrics *Metrics
}

// Redis keeps buckets in Redis, so that limits hold for all servers together. The requests of a moment share a script. It
// is safe for concurrent use.
type Redis struct {
	client  rueidis.Client
	cfg     RedisConfig
	script  *rueidis.Lua
	lanes   []*lane
	empties *emptyBuckets
	pool    sync.Pool

	redeeming sync.Mutex
	redeemer  redeemer
}

// NewRedis starts a limiter. Close it.
func NewRedis(client rueidis.Client, cfg RedisConfig) *Redis {
	r := &Redis{client: client, cfg: cfg, script: rueidis.NewLuaScript(takeScript), empties: newEmptyBuckets()}
	r.redeemer.batch = newBatch(r)
	lanes := 1
	if cfg.Cluster {
		lanes = len(cfg.Tags)
	}
	for range lanes {
		r.lanes = append(r.lanes, newLane(r))
	}
	return r
}

// Close refuses new requests, and answers those that wait, bounded by ctx.
func (r *Redis) Close(ctx context.Context) error {
	var errs []error
	for _, l := range r.lanes {
		errs = append(errs, l.queue.Close(ctx))
	}
	return errors.Join(errs...)
}

// Take takes tokens from all of the buckets, which are distinct, or from none if one of them lacks some. In a cluster, an
// actor's buckets are in one slot and a caller's in another: then the actor's tokens are gone if it is the caller's that
// lack. An error is counter.ErrUnavailable, counter.ErrOverloaded or counter.ErrFull; then tokens may be gone.
func (r *Redis) Take(ctx context.Context, wants []Want) (Verdict, error) {
	if verdict := r.known(wants); !verdict.Allowed {
		return verdict, nil
	}
	if !r.cfg.Cluster {
		return r.takeFrom(ctx, r.lanes[0], wants, 0)
	}
	// Actors come before callers: whoever has used up his own must not use up what others share.
	for first := 0; first < len(wants); {
		end := first + 1
		for end < len(wants) && wants[end].Who == wants[first].Who && (wants[end].Kind == Caller) == (wants[first].Kind == Caller) {
			end++
		}
		verdict, err := r.takeFrom(ctx, r.lanes[r.tagOf(&wants[first])], wants[first:end], first)
		if err != nil || !verdict.Allowed {
			return verdict, err
		}
		first = end
	}
	return Verdict{Allowed: true}, nil
}

// known refuses what Redis need not be asked.
func (r *Redis) known(wants []Want) Verdict {
	now := time.Now()
	verdict := Verdict{Allowed: true}
	for i := range wants {
		if wait := r.empties.wait(&wants[i], now); wait > verdict.Wait {
			verdict = Verdict{Lacking: i, Wait: wait}
		}
	}
	if !verdict.Allowed {
		r.cfg.Metrics.knownEmpty.Inc()
	}
	return verdict
}

// takeFrom takes tokens of wants that have one lane. Offset is added to the position in the verdict.
func (r *Redis) takeFrom(ctx context.Context, l *lane, wants []Want, offset int) (Verdict, error) {
	q, _ := r.pool.Get().(*request)
	if q == nil {
		q = &request{done: make(chan struct{}, 1)}
	}
	q.wants = append(q.wants[:0], wants...)
	q.keys = q.keys[:0]
	for i := range wants {
		q.keys = append(q.keys, r.keyOf(&wants[i]))
	}
	switch err := l.queue.Add(q); {
	case errors.Is(err, groupcommit.ErrFull):
		return Verdict{}, fmt.Errorf("%w: %w", counter.ErrOverloaded, err)
	case err != nil:
		return Verdict{}, fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
	}
	if err := deadline.Wait(ctx, q.done); err != nil {
		// The request is the lane's until it is answered.
		return Verdict{}, fmt.Errorf("%w: no answer of the limiter: %w", counter.ErrUnavailable, err)
	}
	verdict, err := q.verdict, q.err
	q.verdict, q.err = Verdict{}, nil
	r.pool.Put(q)
	if err != nil {
		return Verdict{}, err
	}
	if !verdict.Allowed {
		r.empties.note(&wants[verdict.Lacking], time.Now(), verdict.Wait)
		verdict.Lacking += offset
	}
	return verdict, nil
}

func (r *Redis) tagOf(w *Want) int { return int(xxhash.Sum64String(w.Who) % uint64(len(r.cfg.Tags))) }

// keyOf is the Redis key of a bucket.
func (r *Redis) keyOf(w *Want) string {
	var b strings.Builder
	tag, kind := r.cfg.Tags[r.tagOf(w)], w.Kind.String()
	b.Grow(len("plusone:{}:limit:   ") + len(tag) + len(kind) + len(w.Scope) + len(w.Who) + len(w.Key))
	b.WriteString("plusone:{")
	b.WriteString(tag)
	b.WriteString("}:limit:")
	b.WriteString(kind)
	b.WriteByte(' ')
	b.WriteString(w.Scope)
	b.WriteByte(' ')
	b.WriteString(w.Who)
	if w.Kind == ActorKey {
		b.WriteByte(' ')
		b.WriteString(w.Key)
	}
	return b.String()
}

// request is a Take that waits for its lane.
type request struct {
	wants   []Want
	keys    []string
	done    chan struct{} // gets a message when verdict and err are set
	verdict Verdict
	err     error
}

// lane sends one script at a time.
type lane struct {
	batch batch // used by run alone
	queue *groupcommit.Queue[*request]
}

func newLane(r *Redis) *lane {
	l := &lane{batch: newBatch(r)}
	l.queue = groupcommit.New(groupcommit.Config[*request]{
		MaxQueue: maxQueuedBuckets, MaxBatch: maxBatchBuckets, Weigh: func(q *request) int { return len(q.keys) },
		Gather: groupcommit.Gather{Enough: gatherBuckets, Wait: gatherWait},
	}, l.run)
	return l
}

// run answers all requests.
func (l *lane) run(ctx context.Context, requests []*request) {
	l.batch.settle(ctx, requests)
	for _, q := range requests {
		q.done <- struct{}{}
	}
}
