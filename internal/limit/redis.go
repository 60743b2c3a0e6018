package limit

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
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
	index   map[string]int // positions in buckets, by key
	buckets []bucket
	asked   []int // for each want of the requests, its position in buckets
	order   []int // positions in buckets, in the order of the groups
	keys    []string
	groups  []byte
	wants   []byte
}

// bucket is one of those of a batch.
type bucket struct {
	key  string
	rate Rate
	cost int64 // of all requests together
	at   int64 // its position in the order, from 1
}

// compare puts buckets of one group beside each other: those with the same rate and cost.
func (b *bucket) compare(other *bucket) int {
	return cmp.Or(cmp.Compare(b.cost, other.cost), cmp.Compare(b.rate.Burst, other.rate.Burst),
		cmp.Compare(b.rate.Tokens, other.rate.Tokens), cmp.Compare(b.rate.Per, other.rate.Per))
}

func newLane(r *Redis) *lane {
	l := &lane{limiter: r, index: make(map[string]int)}
	l.queue = groupcommit.New(groupcommit.Config[*request]{
		MaxQueue: maxQueuedBuckets, MaxBatch: maxBatchBuckets, Weigh: func(q *request) int { return len(q.keys) },
		Gather: groupcommit.Gather{Enough: gatherBuckets, Wait: gatherWait},
	}, l.run)
	return l
}

// run answers all requests.
func (l *lane) run(ctx context.Context, requests []*request) {
	l.collect(requests)
	refused, err := l.ask(ctx, len(requests))
	if err == nil && len(refused)%3 != 0 {
		err = fmt.Errorf("limit: %d numbers are no answer", len(refused))
	}
	for _, q := range requests {
		q.verdict, q.err = Verdict{Allowed: true}, err
	}
	for ; err == nil && len(refused) > 0; refused = refused[3:] {
		q := requests[min(max(int(refused[0]), 1), len(requests))-1]
		lacking := min(max(int(refused[1]), 1), len(q.keys))
		q.verdict = Verdict{Lacking: lacking - 1, Wait: time.Duration(refused[2]) * time.Microsecond}
	}
	for _, q := range requests {
		q.done <- struct{}{}
	}
}

// collect makes keys, groups and wants of the requests, as the script takes them.
func (l *lane) collect(requests []*request) {
	clear(l.index)
	clear(l.buckets)
	clear(l.keys)
	l.buckets, l.asked, l.order, l.keys = l.buckets[:0], l.asked[:0], l.order[:0], l.keys[:0]
	for _, q := range requests {
		for i, key := range q.keys {
			n, known := l.index[key]
			if !known {
				n = len(l.buckets)
				l.index[key] = n
				l.buckets = append(l.buckets, bucket{key: key, rate: q.wants[i].Rate})
				l.order = append(l.order, n)
			}
			l.buckets[n].cost += q.wants[i].Cost
			l.asked = append(l.asked, n)
		}
	}
	slices.SortFunc(l.order, func(a, b int) int { return l.buckets[a].compare(&l.buckets[b]) })
	l.groups = appendArray(l.groups[:0], 0)
	groups := uint32(0)
	for i, n := range l.order {
		b := &l.buckets[n]
		b.at = int64(i + 1)
		l.keys = append(l.keys, b.key)
		if i+1 == len(l.order) || b.compare(&l.buckets[l.order[i+1]]) != 0 {
			groups++
			l.groups = appendFloat(appendFloat(l.groups, b.rate.tokens(1)/1e3), b.rate.tokens(b.rate.Burst)/1e3)
			l.groups = appendInteger(appendInteger(l.groups, b.cost), b.at)
		}
	}
	binary.BigEndian.PutUint32(l.groups[1:], 4*groups)
	l.wants = appendArray(l.wants[:0], len(requests)+2*len(l.asked))
	asked := l.asked
	for _, q := range requests {
		l.wants = appendInteger(l.wants, int64(len(q.keys)))
		for i := range q.keys {
			l.wants = appendInteger(appendInteger(l.wants, l.buckets[asked[i]].at), q.wants[i].Cost)
		}
		asked = asked[len(q.keys):]
	}
}

// appendArray appends the beginning of an array, in MessagePack.
func appendArray(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

// appendInteger appends a number that is not negative, in MessagePack.
func appendInteger(b []byte, n int64) []byte {
	switch {
	case n < 1<<7:
		return append(b, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, 0xcf), uint64(n))
	}
}

func appendFloat(b []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(f))
}

// ask runs the script. An answer that is lost is not asked for again: tokens would be taken twice.
func (l *lane) ask(ctx context.Context, requests int) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, scriptTimeout)
	defer cancel()
	metrics := l.limiter.cfg.Metrics
	metrics.requests.Observe(float64(requests))
	sent := time.Now()
	refused, err := l.limiter.script.Exec(ctx, l.limiter.client, l.keys, []string{string(l.groups), string(l.wants)}).AsIntSlice()
	metrics.seconds.Observe(time.Since(sent).Seconds())
	if err == nil {
		return refused, nil
	}
	metrics.errors.Inc()
	kind := counter.ErrUnavailable
	if reply, ok := rueidis.IsRedisErr(err); ok && strings.HasPrefix(reply.Error(), "OOM") {
		kind = counter.ErrFull
	}
	return nil, fmt.Errorf("%w: take tokens: %w", kind, err)
}
