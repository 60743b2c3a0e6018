package limit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/tinylib/msgp/msgp"

	"github.com/plusone-dev/plusone/internal/counter"
)

// batch is a script for many requests. Its memory is used again for the next ones.
type batch struct {
	limiter *Redis
	index   map[string]int // positions in buckets, by key
	buckets []bucket
	asked   []int // for each want of the requests, its position in buckets
	order   []int // positions in buckets, in the order of the groups
	keys    []string
	groups  []byte
	wants   []byte
}

func newBatch(r *Redis) batch { return batch{limiter: r, index: make(map[string]int)} }

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

// settle gives all requests their verdict, or an error.
func (b *batch) settle(ctx context.Context, requests []*request) {
	b.collect(requests)
	refused, err := b.ask(ctx, len(requests))
	if err == nil && len(refused)%3 != 0 {
		err = fmt.Errorf("limit: %d numbers are no answer", len(refused))
	}
	for _, q := range requests {
		q.verdict, q.err = Verdict{Allowed: true}, err
	}
	for ; err == nil && len(refused) > 0; refused = refused[3:] {
		q := requests[min(max(int(refused[0]), 1), len(requests))-1]
		lacking := min(max(int(refused[1]), 1), len(q.keys))
		q.verdict = Verdict{Lacking: lacking - 1, Wait: time.Duration(min(refused[2], maxDebt.Microseconds())) * time.Microsecond}
	}
}

// collect makes keys, groups and wants of the requests, as the script takes them.
func (b *batch) collect(requests []*request) {
	clear(b.index)
	clear(b.buckets)
	clear(b.keys)
	b.buckets, b.asked, b.order, b.keys = b.buckets[:0], b.asked[:0], b.order[:0], b.keys[:0]
	for _, q := range requests {
		for i, key := range q.keys {
			n, known := b.index[key]
			if !known {
				n = len(b.buckets)
				b.index[key] = n
				b.buckets = append(b.buckets, bucket{key: key, rate: q.wants[i].Rate})
				b.order = append(b.order, n)
			}
			b.buckets[n].cost += q.wants[i].Cost
			b.asked = append(b.asked, n)
		}
	}
	slices.SortFunc(b.order, func(i, k int) int { return b.buckets[i].compare(&b.buckets[k]) })
	endsGroup := func(i int) bool {
		return i+1 == len(b.order) || b.buckets[b.order[i]].compare(&b.buckets[b.order[i+1]]) != 0
	}
	groups := uint32(0)
	for i := range b.order {
		if endsGroup(i) {
			groups++
		}
	}
	b.groups = msgp.AppendArrayHeader(b.groups[:0], 4*groups)
	for i, n := range b.order {
		next := &b.buckets[n]
		next.at = int64(i + 1)
		b.keys = append(b.keys, next.key)
		if endsGroup(i) {
			b.groups = msgp.AppendFloat64(msgp.AppendFloat64(b.groups, next.rate.tokens(1)/1e3), next.rate.tokens(next.rate.Burst)/1e3)
			b.groups = msgp.AppendInt64(msgp.AppendInt64(b.groups, next.cost), next.at)
		}
	}
	b.wants = msgp.AppendArrayHeader(b.wants[:0], uint32(len(requests)+2*len(b.asked)))
	asked := b.asked
	for _, q := range requests {
		b.wants = msgp.AppendInt64(b.wants, int64(len(q.keys)))
		for i := range q.keys {
			b.wants = msgp.AppendInt64(msgp.AppendInt64(b.wants, b.buckets[asked[i]].at), q.wants[i].Cost)
		}
		asked = asked[len(q.keys):]
	}
}

// ask runs the script. An answer that is lost is not asked for again: tokens would be taken twice.
func (b *batch) ask(ctx context.Context, requests int) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, scriptTimeout)
	defer cancel()
	metrics := b.limiter.cfg.Metrics
	metrics.requests.Observe(float64(requests))
	sent := time.Now()
	refused, err := b.limiter.script.Exec(ctx, b.limiter.client, b.keys, []string{string(b.groups), string(b.wants)}).AsIntSlice()
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
