package limit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strconv"
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
}

// NewRedis starts a limiter. Close it.
func NewRedis(client rueidis.Client, cfg RedisConfig) *Redis {
	r := &Redis{client: client, cfg: cfg, script: rueidis.NewLuaScript(takeScript), empties: newEmptyBuckets()}
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
	now := time.Now()
	verdict := Verdict{Allowed: true}
	for i := range wants {
		if wait := r.empties.wait(&wants[i], now); wait > verdict.Wait {
			verdict = Verdict{Lacking: i, Wait: wait}
		}
	}
	if !verdict.Allowed {
		r.cfg.Metrics.knownEmpty.Inc()
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
	return verdict, nil
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
		r.empties.note(&wants[verdict.Lacking], time.Now().Add(verdict.Wait))
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
	limiter *Redis
	queue   *groupcommit.Queue[*request]

	// Used by run alone.
	index    map[string]int // of keys, by name
	keys     []string
	args     []string
	requests []string
}

func newLane(r *Redis) *lane {
	l := &lane{limiter: r, index: make(map[string]int)}
	l.queue = groupcommit.New(groupcommit.Config[*request]{
		MaxQueue: maxQueuedBuckets, MaxBatch: maxBatchBuckets, Weigh: func(q *request) int { return len(q.keys) },
	}, l.run)
	return l
}

// run answers all requests.
func (l *lane) run(ctx context.Context, requests []*request) {
	clear(l.index)
	clear(l.keys)
	l.keys, l.args, l.requests = l.keys[:0], l.args[:0], l.requests[:0]
	for _, q := range requests {
		l.requests = append(l.requests, strconv.Itoa(len(q.keys)))
		for i, key := range q.keys {
			w := &q.wants[i]
			n, known := l.index[key]
			if !known {
				l.keys = append(l.keys, key)
				n = len(l.keys)
				l.index[key] = n
				l.args = append(l.args, microseconds(w.Rate.tokens(1)), microseconds(w.Rate.tokens(w.Rate.Burst)))
			}
			l.requests = append(l.requests, strconv.Itoa(n), strconv.FormatInt(w.Cost, 10))
		}
	}
	l.args = append(l.args, l.requests...)
	answers, err := l.ask(ctx)
	if err == nil && len(answers) != 2*len(requests) {
		err = fmt.Errorf("limit: %d answers to %d requests", len(answers), len(requests))
	}
	for i, q := range requests {
		switch {
		case err != nil:
			q.err = err
		case answers[2*i] == 0:
			q.verdict = Verdict{Allowed: true}
		default:
			lacking := min(max(int(answers[2*i]), 1), len(q.keys))
			q.verdict = Verdict{Lacking: lacking - 1, Wait: time.Duration(answers[2*i+1]) * time.Microsecond}
		}
		q.done <- struct{}{}
	}
}

// ask runs the script. An answer that is lost is not asked for again: tokens would be taken twice.
func (l *lane) ask(ctx context.Context) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, scriptTimeout)
	defer cancel()
	metrics := l.limiter.cfg.Metrics
	metrics.requests.Observe(float64(len(l.requests)))
	sent := time.Now()
	answers, err := l.limiter.script.Exec(ctx, l.limiter.client, l.keys, l.args).AsIntSlice()
	metrics.seconds.Observe(time.Since(sent).Seconds())
	if err == nil {
		return answers, nil
	}
	metrics.errors.Inc()
	kind := counter.ErrUnavailable
	if reply, ok := rueidis.IsRedisErr(err); ok && strings.HasPrefix(reply.Error(), "OOM") {
		kind = counter.ErrFull
	}
	return nil, fmt.Errorf("%w: take tokens: %w", kind, err)
}

// microseconds is a time, in nanoseconds, for the script.
func microseconds(ns float64) string {
	return strconv.FormatFloat(math.Max(ns/1e3, 0), 'f', -1, 64)
}

// emptyBuckets are buckets that Redis said to lack tokens. Until they can have come, there is no need to ask again. It has
// a fixed size: one that is noted takes the place of another.
type emptyBuckets struct {
	seed  maphash.Seed
	slots []slot
}

const emptySlots = 1 << 14

type slot struct {
	mu sync.Mutex
	empty
}

type empty struct {
	id    uint64
	rate  Rate
	need  int64 // so many tokens are not there
	until time.Time
}

func newEmptyBuckets() *emptyBuckets {
	return &emptyBuckets{seed: maphash.MakeSeed(), slots: make([]slot, emptySlots)}
}

// wait is how long a bucket is known to lack tokens, 0 if it is not.
func (e *emptyBuckets) wait(w *Want, now time.Time) time.Duration {
	id := hashOf(e.seed, w)
	s := &e.slots[id%emptySlots]
	s.mu.Lock()
	defer s.mu.Unlock()
	// A policy may have changed the rate.
	if s.id != id || s.rate != w.Rate || w.needed() < s.need {
		return 0
	}
	return max(0, s.until.Sub(now))
}

func (e *emptyBuckets) note(w *Want, until time.Time) {
	id := hashOf(e.seed, w)
	s := &e.slots[id%emptySlots]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty = empty{id: id, rate: w.Rate, need: w.needed(), until: until}
}
