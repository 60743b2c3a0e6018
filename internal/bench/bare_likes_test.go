package bench_test

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/rueidis"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// What bareService has of likes: of each whether its id and its pair are new, in Redis; the pair for the membership and for
// the ledger; and a row in the ledger with the index entries that ListLikers and ListLiked need. The membership in Redis grows
// for ever, unless the ledger is asked too.

const bareLikesScript = `
if redis.call('HSETNX', KEYS[1], ARGV[1], '') == 0 then return 0 end
local p, count = 3, 0
for s = 1, 8 do
  local n, new = ARGV[p] + 0, 0
  if n > 0 then
    local known = redis.call('HMGET', KEYS[9 + s], unpack(ARGV, p + 1, p + n))
    local liked = redis.call('HMGET', KEYS[17 + s], unpack(ARGV, p + n + 1, p + 2 * n))
    local ids, pairs = {}, {}
    for i = 1, n do
      if known[i] then return redis.error_reply('an id is known') end
      if not liked[i] then new = new + 1 end
      ids[2 * i - 1], ids[2 * i] = ARGV[p + i], '1'
      pairs[2 * i - 1], pairs[2 * i] = ARGV[p + n + i], '1'
    end
    redis.call('HSET', KEYS[9 + s], unpack(ids))
    redis.call('HSET', KEYS[17 + s], unpack(pairs))
    redis.call('HSET', KEYS[25 + s], unpack(pairs))
  end
  count = count + redis.call('HINCRBY', KEYS[1 + s], ARGV[2], new)
  p = p + 1 + 2 * n
end
return count`

const bareTable = `
CREATE TABLE bare_likes (key text COLLATE "C", actor text COLLATE "C", liked boolean NOT NULL, at timestamptz NOT NULL, PRIMARY KEY (key, actor));
CREATE INDEX ON bare_likes (key, at, actor) WHERE liked;
CREATE INDEX ON bare_likes (actor, at, key) WHERE liked`

const bareInsert = `INSERT INTO bare_likes SELECT u.key, u.actor, true, now() FROM unnest($1::text[], $2::text[]) AS u (key, actor) ON CONFLICT DO NOTHING`

// A look into the index for each, whatever the plan.
const bareFind = `
SELECT u.actor FROM unnest($2::text[]) AS u (actor)
WHERE EXISTS (SELECT FROM bare_likes AS l WHERE l.key = $1 COLLATE "C" AND l.actor = u.actor COLLATE "C" OFFSET 0)`

func (s *bareService) Like(_ context.Context, r *plusonev1.LikeRequest) (*plusonev1.LikeResponse, error) {
	c := &bareCall{like: r, done: make(chan struct{})}
	if err := s.wait(c); err != nil {
		return nil, err
	}
	return &plusonev1.LikeResponse{Changed: true, Count: &c.count, AsOf: timestamppb.Now()}, nil
}

// runLikes sets likes of one key.
func (s *bareService) runLikes(ctx context.Context, calls []*bareCall) {
	var count int64
	err := s.ask(ctx, calls)
	if err == nil {
		count, err = s.setLikes(ctx, calls)
	}
	for _, c := range calls {
		c.count, c.err = count, err
		close(c.done)
	}
}

// ask fails if the ledger knows one of the likes.
func (s *bareService) ask(ctx context.Context, calls []*bareCall) error {
	if !s.asks {
		return nil
	}
	actors := make([]string, len(calls))
	for i, c := range calls {
		actors[i] = c.like.GetActor()
	}
	rows, err := s.ledger.Query(ctx, bareFind, calls[0].like.GetKey(), actors)
	if err != nil {
		return err
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(known) > 0 {
		err = errors.New("a pair is known")
	}
	return err
}

func (s *bareService) setLikes(ctx context.Context, calls []*bareCall) (int64, error) {
	for _, c := range calls {
		shard := &s.shards[maphash.String(s.seed, c.like.GetActor())%naiveShards]
		shard.ids = append(shard.ids, c.like.GetRequestId())
		shard.pairs = append(shard.pairs, c.like.GetKey()+"\x00"+c.like.GetActor())
	}
	args := append(make([]string, 0, 2+naiveShards+2*len(calls)), rand.Text(), calls[0].like.GetKey())
	for i := range s.shards {
		shard := &s.shards[i]
		args = append(append(append(args, strconv.Itoa(len(shard.ids))), shard.ids...), shard.pairs...)
		shard.ids, shard.pairs = shard.ids[:0], shard.pairs[:0]
	}
	keys := []string{"batches"}
	for _, name := range []string{"shard:", "ids:", "members:", "likes:"} {
		for i := range s.shards {
			keys = append(keys, name+strconv.Itoa(i))
		}
	}
	return s.likes.Exec(ctx, s.redis, keys, args).AsInt64()
}

// drain moves likes to the ledger, a shard at a time, as often as plusone does.
func (s *bareService) drain() {
	for range time.Tick(5 * time.Second) {
		for i := range s.shards {
			if err := s.drainShard(context.Background(), strconv.Itoa(i)); err != nil {
				panic(err)
			}
		}
	}
}

func (s *bareService) drainShard(ctx context.Context, shard string) error {
	sealed := "sealed:" + shard
	err := s.redis.Do(ctx, s.redis.B().Rename().Key("likes:"+shard).Newkey(sealed).Build()).Error()
	if _, missing := rueidis.IsRedisErr(err); missing {
		return nil // nothing was liked
	}
	var pairs []string
	for cursor, more := uint64(0), true; more && err == nil; more = cursor != 0 {
		var page rueidis.ScanEntry
		page, err = s.redis.Do(ctx, s.redis.B().Hscan().Key(sealed).Cursor(cursor).Count(2000).Build()).AsScanEntry()
		for i := 0; i < len(page.Elements); i += 2 {
			pairs = append(pairs, page.Elements[i])
		}
		cursor = page.Cursor
	}
	if err != nil {
		return err
	}
	slices.Sort(pairs)
	pairs = slices.Compact(pairs)
	for chunk := range slices.Chunk(pairs, 1000) {
		keys, actors := make([]string, len(chunk)), make([]string, len(chunk))
		for i, pair := range chunk {
			keys[i], actors[i], _ = strings.Cut(pair, "\x00")
		}
		if _, err := s.ledger.Exec(ctx, bareInsert, keys, actors); err != nil {
			return err
		}
	}
	return s.redis.Do(ctx, s.redis.B().Unlink().Key(sealed).Build()).Error()
}
