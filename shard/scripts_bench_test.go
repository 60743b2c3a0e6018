package shard_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

// onceScript counts one change and its id.
const onceScript = `if redis.call('SET', KEYS[2], '1', 'NX', 'PX', 300000) then redis.call('INCRBY', KEYS[1], 1) end return 1`

// BenchmarkWrite reports what Redis spends on a change, by its own account, in batches of changes of 1,000 keys, beside
// a script for each change.
func BenchmarkWrite(b *testing.B) {
	const shards, keys = 8, 1000
	for _, size := range []int{8, 64, 512} {
		for _, withID := range []bool{false, true} {
			b.Run(fmt.Sprintf("changes=%d/id=%t", size, withID), func(b *testing.B) {
				client := newClient(b, redistest.Start(b))
				r, err := shard.NewRedis(client, shard.RedisConfig{
					Shards: shards, Window: 5 * time.Second, Dedupe: 5 * time.Minute, MaxSpread: 10,
				})
				must(b, err)
				next := 0
				for b.Loop() {
					batch := &shard.WriteBatch{ID: storetest.NewID(time.Now()), Made: time.Now().UnixMilli()}
					parts := make([]shard.ShardWrite, shards)
					for range size {
						key := fmt.Sprintf("views/post:%07d", next%keys)
						next++
						add(&parts[shard.Home(key, shards)], key, withID)
					}
					for i := range parts {
						if parts[i].Shard = i; len(parts[i].Entries) > 0 {
							batch.Shards = append(batch.Shards, parts[i])
						}
					}
					reply, err := r.Write(b.Context(), batch)
					must(b, err)
					if reply.Status != shard.WriteApplied {
						b.Fatalf("status %d", reply.Status)
					}
					for range 4 {
						command(b, client, "EVAL", onceScript, "2", "once", storetest.NewID(time.Now()))
					}
				}
				change, once := scriptMicros(b, client, "evalsha")/float64(b.N*size), scriptMicros(b, client, "eval")/float64(b.N*4)
				b.ReportMetric(change, "redis-µs/change")
				b.ReportMetric(change/once, "of-a-script")
			})
		}
	}
}

// add adds a change to a part.
func add(p *shard.ShardWrite, key string, withID bool) {
	p.Entries = append(p.Entries, counter.Entry{Key: key, Delta: 1})
	if !withID {
		return
	}
	id := counter.ParseRequestID(storetest.NewID(time.Now()))
	made, _ := id.Time()
	if len(p.Claims) == 0 {
		p.Claims = []shard.ClaimGroup{{Kind: shard.ClaimTimed, Bucket: made - made%60_000, Oldest: made, Newest: made}}
	}
	g := &p.Claims[0]
	g.Newest = max(g.Newest, made)
	g.Fields, g.Values = append(g.Fields, id.Bytes()), append(g.Values, "12345678")
}

// scriptMicros is what the scripts that a command ran have taken so far.
func scriptMicros(b *testing.B, client rueidis.Client, name string) float64 {
	b.Helper()
	info, err := command(b, client, "INFO", "commandstats").ToString()
	must(b, err)
	var sum float64
	for line := range strings.Lines(info) {
		if !strings.HasPrefix(line, "cmdstat_"+name+":") {
			continue
		}
		_, usec, _ := strings.Cut(line, "usec=")
		usec, _, _ = strings.Cut(usec, ",")
		n, err := strconv.ParseFloat(usec, 64)
		must(b, err)
		sum += n
	}
	return sum
}
