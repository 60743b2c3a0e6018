package bench_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"hash/maphash"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/rueidis"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/groupcommit"
	"github.com/plusone-dev/plusone/internal/rawconn"
)

// bareService is the least that combines changes and counts each request id once, as long as nothing goes wrong: the
// queue of plusone's write lane, one command of Redis for each key, and two for all ids of a shard. It drains likes alone, has
// no windows, forgets no id, and knows nothing of rollbacks, overflows, spread keys and repeats.
type bareService struct {
	plusonev1.UnimplementedCounterServiceServer
	redis         rueidis.Client
	script, likes *rueidis.Lua
	seed          maphash.Seed
	queue         *groupcommit.Queue[*bareCall]
	shards        [naiveShards]bareShard
	ledger        *pgxpool.Pool
	asks          bool // the ledger, for what was liked before
}

// bareCall is a call that waits.
type bareCall struct {
	request *plusonev1.IncrementRequest
	like    *plusonev1.LikeRequest // if it is nil
	count   int64                  // of likes
	err     error
	done    chan struct{}
}

// bareShard is the part of a batch that goes to one shard.
type bareShard struct {
	sums  map[string]int64
	ids   []string
	pairs []string
}

const bareScript = `
if redis.call('HSETNX', KEYS[1], ARGV[1], '') == 0 then return 0 end
local p = 2
for s = 1, 8 do
  local entries, ids, key = ARGV[p] + 0, ARGV[p + 1] + 0, KEYS[1 + s]
  local first_id = p + 2 + 2 * entries
  if ids > 0 then
    local known, fields = redis.call('HMGET', KEYS[9 + s], unpack(ARGV, first_id, first_id + ids - 1)), {}
    for i = 1, ids do
      if known[i] then return redis.error_reply('an id is known') end
      fields[2 * i - 1], fields[2 * i] = ARGV[first_id + i - 1], '1'
    end
    redis.call('HSET', KEYS[9 + s], unpack(fields))
  end
  for i = p + 2, first_id - 2, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
  p = first_id + ids
end
return 1`

// newBare takes the URLs of Redis and Postgres, with a space between.
func newBare(stores string, asks bool) (*bareService, error) {
	store, ledger, _ := strings.Cut(stores, " ")
	options := rueidis.MustParseURL(store)
	options.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
		return rawconn.Over(dialer.DialContext)(ctx, "tcp", addr)
	}
	client, err := rueidis.NewClient(options)
	if err != nil {
		return nil, err
	}
	// As plusone has it by other means: a listpack is searched from its start.
	err = client.Do(context.Background(), client.B().ConfigSet().ParameterValue().ParameterValue("hash-max-listpack-entries", "0").Build()).Error()
	if err != nil {
		return nil, err
	}
	s := &bareService{
		asks: asks, redis: client, script: rueidis.NewLuaScript(bareScript), likes: rueidis.NewLuaScript(bareLikesScript), seed: maphash.MakeSeed(),
	}
	for i := range s.shards {
		s.shards[i].sums = map[string]int64{}
	}
	s.queue = groupcommit.New(groupcommit.Config[*bareCall]{
		MaxQueue: 1 << 16, MaxBatch: 1 << 12, Gather: groupcommit.Gather{Enough: 128, Wait: 4 * time.Millisecond}, Yield: true,
	}, s.run)
	if s.ledger, err = pgxpool.New(context.Background(), ledger); err != nil {
		return nil, err
	}
	if _, err = s.ledger.Exec(context.Background(), bareTable); err != nil {
		return nil, err
	}
	go s.drain()
	return s, nil
}

func (s *bareService) Increment(_ context.Context, r *plusonev1.IncrementRequest) (*plusonev1.IncrementResponse, error) {
	c := &bareCall{request: r, done: make(chan struct{})}
	if err := s.wait(c); err != nil {
		return nil, err
	}
	return applied(), nil
}

func (s *bareService) wait(c *bareCall) error {
	if err := s.queue.Add(c); err != nil {
		return err
	}
	<-c.done
	return c.err
}

func (s *bareService) run(ctx context.Context, calls []*bareCall) {
	if calls[0].like != nil {
		s.runLikes(ctx, calls)
		return
	}
	for _, c := range calls {
		shard := &s.shards[maphash.String(s.seed, c.request.GetKey())%naiveShards]
		shard.sums[c.request.GetKey()] += c.request.GetDelta()
		if id := c.request.GetRequestId(); id != "" {
			shard.ids = append(shard.ids, id)
		}
	}
	keys, args := make([]string, 0, 1+2*naiveShards), make([]string, 0, 1+4*len(calls))
	keys, args = append(keys, "batches"), append(args, rand.Text())
	for i := range s.shards {
		keys = append(keys, "shard:"+strconv.Itoa(i))
		args = append(args, strconv.Itoa(len(s.shards[i].sums)), strconv.Itoa(len(s.shards[i].ids)))
		for key, sum := range s.shards[i].sums {
			args = append(args, key, strconv.FormatInt(sum, 10))
		}
		args = append(args, s.shards[i].ids...)
		clear(s.shards[i].sums)
		s.shards[i].ids = s.shards[i].ids[:0]
	}
	for i := range s.shards {
		keys = append(keys, "ids:"+strconv.Itoa(i))
	}
	err := s.script.Exec(ctx, s.redis, keys, args).Error()
	for _, c := range calls {
		c.err = err
		close(c.done)
	}
}
