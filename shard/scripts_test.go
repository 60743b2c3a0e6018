package shard_test

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// scriptConfig is what the scripts are tested with. The clock of the tests stands still until it is set.
var scriptConfig = shard.RedisConfig{Shards: 4, Window: 5 * time.Second, Dedupe: 5 * time.Minute, MaxSpread: 3}

const (
	windowMS = 5_000
	dedupeMS = 300_000
	earlyMS  = 30_000
	// opaqueMS is the length of the buckets of request ids without a time.
	opaqueMS = dedupeMS + earlyMS
	hourMS   = 3_600_000
	// epochMS is when tests begin: the start of an opaque bucket and of an hour, and so of a minute's bucket too.
	epochMS = 1_700_000_000_000 / (11 * hourMS) * (11 * hourMS)
	hour    = time.Hour
)

// exercises are the rules of the protocol, as any shard.Scripts must keep them, by the file they are in.
var exercises = []map[string]func(t *testing.T, f *fixture){
	writeCases, readyCases, likeCases, membershipCases, newLikeCases, likeClaimCases, likeFlushCases, claimCases, readCases, flushCases,
	rollbackCases, limitCases,
}

func TestScripts(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(testing.TB) *fixture{"redis": openRedis, "twin": openTwin} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			for _, cases := range exercises {
				for name, run := range cases {
					t.Run(name, func(t *testing.T) {
						f.flushAll(t)
						clear(f.tokens)
						f.set(t, epochMS)
						run(t, f)
					})
				}
			}
		})
	}
}

// fixture is scripts with a clock that the test sets, and what a test does to a Redis behind their back.
type fixture struct {
	shard.Scripts
	now     int64 // ms
	batches int
	tokens  map[[2]int64]string // of sealed windows, by shard and id

	setClock func(t testing.TB, micros int64)
	flushAll func(t testing.TB)
	// evict deletes the bases of a key.
	evict func(t testing.TB, key string)
	// evictLikes deletes the membership of an hour, 0 for that of the epoch, as a full Redis may.
	evictLikes func(t testing.TB, hour int64)
	// snapshot copies all data and returns what brings them back. The clock goes on.
	snapshot func(t testing.TB) (restore func(t testing.TB))
	// windows are the ids of a shard's windows.
	windows func(t testing.TB, n int) []int64
}

func openTwin(testing.TB) *fixture {
	var micros int64
	r := twin.New(scriptConfig, func() int64 { return micros })
	return &fixture{
		Scripts:    r,
		setClock:   func(_ testing.TB, now int64) { micros = now },
		flushAll:   func(testing.TB) { r.FlushAll() },
		evict:      func(_ testing.TB, key string) { r.Evict(key) },
		evictLikes: func(_ testing.TB, hour int64) { r.EvictLikes(epochMS/hourMS + hour) },
		snapshot: func(testing.TB) func(testing.TB) {
			s := r.Snapshot()
			return func(testing.TB) { r.Restore(s) }
		},
		windows: func(_ testing.TB, n int) []int64 { return r.Windows(n) },
	}
}

const clockKey = "test:clock"

func openRedis(t testing.TB) *fixture {
	t.Helper()
	return clockedFixture(t, newClient(t, redistest.Start(t)))
}

func clockedFixture(t testing.TB, client rueidis.Client) *fixture {
	t.Helper()
	r, err := shard.NewClockedRedis(client, scriptConfig, clockKey)
	must(t, err)
	f := &fixture{Scripts: r}
	f.setClock = func(t testing.TB, micros int64) { command(t, client, "SET", clockKey, strconv.FormatInt(micros, 10)) }
	f.flushAll = func(t testing.TB) {
		command(t, client, "FLUSHALL")
		f.setClock(t, f.now*1000)
	}
	f.evict = func(t testing.TB, key string) {
		for _, name := range allKeys(t, client) {
			if _, rest, ok := strings.Cut(name, ":base:"); ok {
				if _, base, _ := strings.Cut(rest, ":"); base == key {
					command(t, client, "DEL", name)
				}
			}
		}
	}
	f.evictLikes = func(t testing.TB, hour int64) {
		suffix := ":" + strconv.FormatInt(epochMS/hourMS+hour, 10)
		for _, name := range allKeys(t, client) {
			if strings.Contains(name, ":likes:") && strings.HasSuffix(name, suffix) {
				command(t, client, "DEL", name)
			}
		}
	}
	tags := shard.Tags(scriptConfig.Shards)
	f.windows = func(t testing.TB, n int) []int64 {
		ids, err := command(t, client, "LRANGE", "plusone:{"+tags[n]+"}:windows", "0", "-1").AsIntSlice()
		must(t, err)
		return ids
	}
	f.snapshot = func(t testing.TB) func(testing.TB) {
		type value struct{ name, ttl, data string }
		var values []value
		for _, name := range allKeys(t, client) {
			ttl, err := command(t, client, "PTTL", name).AsInt64()
			must(t, err)
			data, err := command(t, client, "DUMP", name).ToString()
			must(t, err)
			values = append(values, value{name, strconv.FormatInt(max(ttl, 0), 10), data})
		}
		return func(t testing.TB) {
			f.flushAll(t)
			for _, v := range values {
				if v.name != clockKey {
					command(t, client, "RESTORE", v.name, v.ttl, v.data)
				}
			}
		}
	}
	return f
}

func newClient(t testing.TB, server *redistest.Server) rueidis.Client {
	t.Helper()
	return newClientAt(t, server.Addr)
}

func newClientAt(t testing.TB, addr string) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, ForceSingleClient: true, DisableCache: true})
	must(t, err)
	t.Cleanup(client.Close)
	return client
}

func command(t testing.TB, client rueidis.Client, args ...string) rueidis.RedisResult {
	t.Helper()
	result := client.Do(context.Background(), client.B().Arbitrary(args...).Build())
	must(t, result.Error())
	return result
}

func allKeys(t testing.TB, client rueidis.Client) []string {
	t.Helper()
	names, err := command(t, client, "KEYS", "*").AsStrSlice()
	must(t, err)
	return names
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %+v, want %+v", what, got, want)
	}
}

// set sets the clock, in ms.
func (f *fixture) set(t testing.TB, ms int64) {
	t.Helper()
	f.now = ms
	f.setClock(t, ms*1000)
}

func (f *fixture) advance(t testing.TB, ms int64) {
	t.Helper()
	f.set(t, f.now+ms)
}

// batch returns a batch of its own, made now.
func (f *fixture) batch(parts ...shard.ShardWrite) *shard.WriteBatch {
	f.batches++
	return &shard.WriteBatch{ID: fmt.Sprintf("batch-%d", f.batches), Made: f.now, Shards: parts}
}

func (f *fixture) write(t testing.TB, b *shard.WriteBatch) shard.WriteReply {
	t.Helper()
	reply, err := f.Write(t.Context(), b)
	must(t, err)
	equal(t, "time of the answer", reply.Micros, f.now*1000)
	reply.Micros = 0
	if len(reply.Likes) == 0 {
		reply.Likes = nil
	}
	return reply
}

// add writes deltas that must be applied.
func (f *fixture) add(t testing.TB, n int, entries ...counter.Entry) {
	t.Helper()
	f.applied(t, f.batch(shard.ShardWrite{Shard: n, Entries: entries}))
}

func (f *fixture) applied(t testing.TB, b *shard.WriteBatch) {
	t.Helper()
	equal(t, "answer", f.write(t, b), shard.WriteReply{Status: shard.WriteApplied})
}

// refused writes a batch that must be refused for the reasons given, and changes nothing.
func (f *fixture) refused(t testing.TB, b *shard.WriteBatch, want shard.WriteReply) {
	t.Helper()
	want.Status = shard.WriteRefused
	equal(t, "answer", f.write(t, b), want)
}

func (f *fixture) late(t testing.TB, b *shard.WriteBatch) {
	t.Helper()
	equal(t, "answer", f.write(t, b), shard.WriteReply{Status: shard.WriteLate})
}

func (f *fixture) load(t testing.TB, n int, watermark int64, bases ...shard.Base) bool {
	t.Helper()
	for i := range bases {
		if bases[i].TTL == 0 {
			bases[i].TTL = hour
		}
	}
	ok, err := f.Load(t.Context(), n, watermark, bases)
	must(t, err)
	return ok
}

// reads checks what a shard holds of a key.
func (f *fixture) reads(t testing.TB, n int, key string, want shard.KeyValue) {
	t.Helper()
	replies, err := f.Read(t.Context(), []shard.KeyGroup{{Shard: n, Keys: []string{key}}})
	must(t, err)
	equal(t, "shard's part of "+key, replies, []shard.ReadReply{{Micros: f.now * 1000, Values: []shard.KeyValue{want}}})
}

// pending checks the sum of pending deltas of a key whose base is not cached.
func (f *fixture) pending(t testing.TB, n int, key string, want int64) {
	t.Helper()
	f.reads(t, n, key, shard.KeyValue{Value: want})
}

// cached checks base plus pending deltas of a key.
func (f *fixture) cached(t testing.TB, n int, key string, want int64) {
	t.Helper()
	f.reads(t, n, key, shard.KeyValue{Value: want, Cached: true})
}

// sealReply is a shard.SealReply with the ids of the windows alone.
type sealReply struct {
	Windows                      int
	RolledBack, RestoreDue, More bool
	Sealed                       []int64
}

func (f *fixture) seal(t testing.TB, n int, watermark int64, fresh string, want sealReply) {
	t.Helper()
	reply, err := f.Seal(t.Context(), n, f.sealed(n, watermark), fresh)
	must(t, err)
	equal(t, "time", reply.Time, f.now)
	got := sealReply{Windows: reply.Windows, RolledBack: reply.RolledBack, RestoreDue: reply.RestoreDue, More: reply.More}
	for _, w := range reply.Sealed {
		got.Sealed = append(got.Sealed, w.ID)
		f.remember(n, w)
	}
	equal(t, "seal", got, want)
}

// remember keeps the token of a sealed window, as a worker and the ledger do.
func (f *fixture) remember(n int, w shard.SealedWindow) {
	if f.tokens == nil {
		f.tokens = map[[2]int64]string{}
	}
	f.tokens[[2]int64{int64(n), w.ID}] = w.Token
}

// sealed is a window with the token by which it was last sealed here.
func (f *fixture) sealed(n int, id int64) shard.SealedWindow {
	return shard.SealedWindow{ID: id, Token: f.tokens[[2]int64{int64(n), id}]}
}

func (f *fixture) scan(t testing.TB, n int, window int64) shard.WindowPart {
	t.Helper()
	all := shard.WindowPart{
		Deltas: map[string]int64{}, LikeDeltas: map[string]int64{},
		Likes: map[counter.Pair]shard.PendingLike{}, Markers: map[string]shard.Marker{},
	}
	for cursor := uint64(0); ; {
		next, part, err := f.Scan(t.Context(), n, window, cursor)
		must(t, err)
		maps.Copy(all.Deltas, part.Deltas)
		maps.Copy(all.LikeDeltas, part.LikeDeltas)
		maps.Copy(all.Likes, part.Likes)
		maps.Copy(all.Markers, part.Markers)
		if next == 0 {
			return all
		}
		cursor = next
	}
}

func (f *fixture) holds(t testing.TB, n int, window int64, want map[string]int64) {
	t.Helper()
	equal(t, "window", f.scan(t, n, window).Deltas, want)
}

func (f *fixture) begin(t testing.TB, n int, window, previous int64, gen string, rolledBack bool) {
	t.Helper()
	got, err := f.Begin(t.Context(), n, f.sealed(n, window), previous, gen)
	must(t, err)
	equal(t, "rollback noticed", got, rolledBack)
}

func (f *fixture) move(t testing.TB, n int, window int64, entries ...counter.Entry) {
	t.Helper()
	var moves shard.Moves
	for _, e := range entries {
		moves.Deltas = append(moves.Deltas, shard.MovedDelta{Key: e.Key, Delta: e.Delta})
	}
	must(t, f.Move(t.Context(), n, window, moves))
}

func (f *fixture) spread(t testing.TB, n int, keys []string, want ...shard.Marker) {
	t.Helper()
	markers, err := f.Spread(t.Context(), n, keys, 0)
	must(t, err)
	equal(t, "markers", markers, want)
}
