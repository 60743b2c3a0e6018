package shard_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/shard"
)

// realRedis is a Redis server as a modelRedis. Its scripts take the time from a key.
type realRedis struct {
	t      *testing.T
	client rueidis.Client
	micros int64
	prefix string
}

const modelClock = "model:clock"

func newRealRedis(t *testing.T, client rueidis.Client) *realRedis {
	command(t, client, "FLUSHALL")
	r := &realRedis{t: t, client: client, prefix: "plusone:{" + shard.Tags(1)[0] + "}:"}
	r.micros = modelStart.UnixMicro()
	r.Advance(0)
	return r
}

func (r *realRedis) Scripts() shard.Scripts {
	scripts, err := shard.NewClockedRedis(r.client, shard.RedisConfig{
		Shards: 1, Window: modelWindow, Dedupe: modelDedupe, MaxSpread: 10,
	}, modelClock)
	must(r.t, err)
	return scripts
}

func (r *realRedis) Micros() int64 { return r.micros }

func (r *realRedis) Advance(d time.Duration) {
	r.micros += d.Microseconds()
	command(r.t, r.client, "SET", modelClock, strconv.FormatInt(r.micros, 10))
}

// Snapshot dumps all keys. Times to live are not kept: none ends while a model runs.
func (r *realRedis) Snapshot() (restore func()) {
	dumps := map[string]string{}
	for _, key := range allKeys(r.t, r.client) {
		value, err := command(r.t, r.client, "DUMP", key).ToString()
		must(r.t, err)
		dumps[key] = value
	}
	return func() {
		r.FlushAll()
		for key, value := range dumps {
			if key != modelClock {
				command(r.t, r.client, "RESTORE", key, "0", value)
			}
		}
	}
}

func (r *realRedis) FlushAll() {
	command(r.t, r.client, "FLUSHALL")
	r.Advance(0)
}

func (r *realRedis) Evict(name string) {
	for _, key := range allKeys(r.t, r.client) {
		if strings.HasPrefix(key, r.prefix+"base:") && strings.HasSuffix(key, ":"+name) {
			command(r.t, r.client, "DEL", key)
		}
	}
}

func (r *realRedis) EvictLikes(hour int64) {
	for _, key := range allKeys(r.t, r.client) {
		if strings.HasPrefix(key, r.prefix+"likes:") && strings.HasSuffix(key, ":"+strconv.FormatInt(hour, 10)) {
			command(r.t, r.client, "DEL", key)
		}
	}
}

func (r *realRedis) Windows() []int64 {
	ids, err := command(r.t, r.client, "LRANGE", r.prefix+"windows", "0", "-1").AsIntSlice()
	must(r.t, err)
	return ids
}

// realLedger is the ledger in Postgres as a modelLedger.
type realLedger struct {
	*flush.Postgres
	t    *testing.T
	pool *pgxpool.Pool
}

func newRealLedger(t *testing.T) *realLedger {
	ctx := context.WithoutCancel(t.Context())
	url := pgtest.NewDatabase(t)
	ledger, err := flush.OpenPostgres(ctx, url, flush.PostgresOptions{DedupeWindow: modelDedupe})
	must(t, err)
	t.Cleanup(ledger.Close)
	must(t, ledger.Migrate(ctx))
	must(t, ledger.EnsureSettings(ctx, flush.Settings{Mode: flush.ModeSharded, Shards: 1, Window: modelWindow, DedupeWindow: modelDedupe}))
	pool, err := pgxpool.New(ctx, url)
	must(t, err)
	t.Cleanup(pool.Close)
	return &realLedger{ledger, t, pool}
}

// clear makes the ledger as new, which is quicker than a new one.
func (l *realLedger) clear() {
	_, err := l.pool.Exec(l.t.Context(), `TRUNCATE counters, history, likes; UPDATE shards SET watermark = 0, token = ''`)
	must(l.t, err)
}

func (l *realLedger) Totals() map[string]int64 {
	return l.sums(`SELECT key, count FROM counter_totals`)
}

func (l *realLedger) LikeTotals() map[string]int64 {
	return l.sums(`SELECT key, likes FROM counter_totals`)
}

func (l *realLedger) LikedPairs() map[counter.Pair]bool {
	rows, err := l.pool.Query(l.t.Context(), `SELECT key, actor FROM likes WHERE liked`)
	must(l.t, err)
	pairs := map[counter.Pair]bool{}
	var pair counter.Pair
	_, err = pgx.ForEachRow(rows, []any{&pair.Key, &pair.Actor}, func() error {
		pairs[pair] = true
		return nil
	})
	must(l.t, err)
	return pairs
}

func (l *realLedger) sums(sql string) map[string]int64 {
	rows, err := l.pool.Query(l.t.Context(), sql)
	must(l.t, err)
	totals := map[string]int64{}
	var key string
	var count int64
	for rows.Next() {
		must(l.t, rows.Scan(&key, &count))
		totals[key] = count
	}
	must(l.t, rows.Err())
	return totals
}

func TestModelOnRedisAndPostgres(t *testing.T) {
	t.Parallel()
	for name, rollback := range map[string]bool{"steady": false, "rollback": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, redistest.Start(t))
			ledger := newRealLedger(t)
			exerciseModel(t, *realRuns, rollback, func(t *testing.T) (modelRedis, modelLedger) {
				ledger.clear()
				return newRealRedis(t, client), ledger
			})
		})
	}
}
