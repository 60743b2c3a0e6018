package shard

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// Limits within scripts, and of what they return.
const (
	// batchLifetime is how long after it was made a batch may be applied. Lost answers are asked for again
	// for a shorter time (writeBudget, and writeAgain for the last).
	batchLifetime = 10 * time.Second
	// maxSealed is how many windows one round of the flush takes on.
	maxSealed = 64
	// maxSwept is how many claim buckets one Sweep forgets; there are a few a minute.
	maxSwept = 100
	// scanCount is the size of a chunk of Scan: a millisecond of Redis.
	scanCount = 2000
	// maxKeysPerRead bounds the keys of a shard in one Read, by what Lua can unpack.
	maxKeysPerRead = 4000
)

// RedisConfig configures the scripts. Shards, Window and Dedupe are fixed for the life of a deployment.
type RedisConfig struct {
	Shards int
	Window time.Duration
	Dedupe time.Duration
	// WaitReplicas is how many replicas must have a batch before it is acknowledged, and WaitTimeout how
	// long that may take.
	WaitReplicas int
	WaitTimeout  time.Duration
	// MaxSpread is how many keys of a shard may be spread.
	MaxSpread int
}

// Redis runs the scripts on a Redis deployment, standalone or cluster. It is safe for concurrent use.
type Redis struct {
	client rueidis.Client
	cfg    RedisConfig
	meta   []string // meta key by shard

	write, read, likes, homes, load, spread, pending *script
	seal, begin, move, end, discard, restore, sweep  *script
	windowMS                                         string
	settings                                         [5]int64  // see writeEncoder
	encoders                                         sync.Pool // of *writeEncoder
}

var _ Scripts = (*Redis)(nil)

// NewRedis prepares the scripts. It does not talk to Redis.
func NewRedis(client rueidis.Client, cfg RedisConfig) (*Redis, error) {
	if cfg.Shards < 1 || cfg.Shards > MaxShards {
		return nil, fmt.Errorf("shards: %d is not between 1 and %d", cfg.Shards, MaxShards)
	}
	r := &Redis{
		client: client, cfg: cfg,
		windowMS: strconv.FormatInt(cfg.Window.Milliseconds(), 10),
		settings: [5]int64{
			batchLifetime.Milliseconds(), cfg.Window.Milliseconds(), cfg.Dedupe.Milliseconds(), counter.MaxEarly.Milliseconds(),
			asNumber(cfg.WaitReplicas > 0),
		},
	}
	for _, tag := range Tags(cfg.Shards) {
		r.meta = append(r.meta, "plusone:{"+tag+"}:meta")
	}
	for _, s := range []struct {
		script **script
		files  []string
	}{
		{&r.write, []string{"lib", "write", "windows", "claims", "int64", "careful", "like", "write_likes"}},
		{&r.read, []string{"lib", "read"}},
		{&r.likes, []string{"lib", "like", "likes"}},
		{&r.homes, []string{"lib", "homes"}},
		{&r.load, []string{"lib", "windows", "int64", "base", "load"}},
		{&r.spread, []string{"lib", "windows", "spread"}},
		{&r.pending, []string{"lib", "pending"}},
		{&r.seal, []string{"lib", "seal"}},
		{&r.begin, []string{"lib", "begin"}},
		{&r.move, []string{"lib", "int64", "move"}},
		{&r.end, []string{"lib", "end"}},
		{&r.discard, []string{"lib", "discard"}},
		{&r.restore, []string{"lib", "windows", "restore"}},
		{&r.sweep, []string{"lib", "sweep"}},
	} {
		var err error
		if *s.script, err = loadScript(s.files...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Cluster reports whether the deployment is a Redis Cluster, where one script touches one shard only.
func (r *Redis) Cluster() bool { return r.client.Mode() == rueidis.ClientModeCluster }

// Write implements Scripts.
func (r *Redis) Write(ctx context.Context, b *WriteBatch) (WriteReply, error) {
	keys := make([]string, len(b.Shards))
	for i := range b.Shards {
		keys[i] = r.meta[b.Shards[i].Shard]
	}
	encoder, ok := r.encoders.Get().(*writeEncoder)
	if !ok {
		encoder = &writeEncoder{}
	}
	args := encoder.encode(b, r.settings)
	defer func() { // commands have copies
		clear(args)
		r.encoders.Put(encoder)
	}()
	if r.Cluster() && r.cfg.WaitReplicas == 0 {
		return parseWriteReply(r.write.exec(ctx, r.client, keys, args), b)
	}
	// A lane sends one batch at a time. On a connection of its own it writes and reads itself, where a shared one has goroutines that do so
	// for all, which takes more turns of the scheduler. In a cluster it is shared all the same, as that follows slots that move.
	client, release := r.client.Dedicate()
	defer release()
	switch {
	case r.cfg.WaitReplicas > 0:
		return r.writeAndWait(ctx, client, keys, args, b)
	case len(b.Counts) > 0:
		return r.writeAndRead(ctx, client, keys, args, b)
	}
	return parseWriteReply(r.write.exec(ctx, client, keys, args), b)
}

// writeAndRead sends the read of counts right behind the write, on the same connection, so Redis runs it later. What
// becomes of it is no matter of the write, unless the connection fails, and with it the write's answer.
func (r *Redis) writeAndRead(ctx context.Context, client rueidis.DedicatedClient, keys, args []string, b *WriteBatch) (WriteReply, error) {
	readKeys, readArgs, err := r.readArgs(b.Counts)
	if err != nil {
		return WriteReply{}, err
	}
	results := client.DoMulti(ctx, r.write.byHash(client, keys, args), r.read.byHash(client, readKeys, readArgs))
	if isUnknown(results[0]) {
		return parseWriteReply(client.Do(ctx, r.write.byText(client, keys, args)), b) // the read came before it
	}
	reply, err := parseWriteReply(results[0], b)
	if err == nil && reply.Status == WriteApplied {
		if counts, readErr := parseReads(results[1], b.Counts); readErr == nil {
			reply.Counts = counts
		}
	}
	return reply, err
}

// writeAndWait returns when the replicas have what the script wrote, or found to be written. WAIT counts the
// writes of its own connection, so both go over one.
func (r *Redis) writeAndWait(ctx context.Context, client rueidis.DedicatedClient, keys, args []string, b *WriteBatch) (WriteReply, error) {
	reply, err := parseWriteReply(r.write.exec(ctx, client, keys, args), b)
	if err != nil || reply.Status == WriteLate {
		return reply, err
	}
	replicas, err := client.Do(ctx, client.B().Wait().Numreplicas(int64(r.cfg.WaitReplicas)).
		Timeout(r.cfg.WaitTimeout.Milliseconds()).Build()).AsInt64()
	if err != nil {
		// Not wrapped: an error reply to WAIT does not mean that the script was refused.
		return WriteReply{}, fmt.Errorf("%w: %v", errTooFewReplicas, err)
	}
	if replicas < int64(r.cfg.WaitReplicas) {
		return WriteReply{}, errTooFewReplicas
	}
	return reply, nil
}

// errTooFewReplicas: the batch is applied, and fewer replicas than asked for have it.
var errTooFewReplicas = errors.New("too few replicas confirmed the write")

// Read implements Scripts.
func (r *Redis) Read(ctx context.Context, groups []KeyGroup) ([]ReadReply, error) {
	keys, args, err := r.readArgs(groups)
	if err != nil {
		return nil, err
	}
	return parseReads(r.read.exec(ctx, r.client, keys, args), groups)
}

// readArgs are the meta keys of shards, and the arguments of read.lua.
func (r *Redis) readArgs(groups []KeyGroup) (keys, args []string, err error) {
	n, err := r.countKeys(groups)
	if err != nil {
		return nil, nil, err
	}
	keys, args = make([]string, len(groups)), append(make([]string, 0, 1+n), readCounts(groups))
	for i, g := range groups {
		keys[i] = r.meta[g.Shard]
		args = append(args, g.Keys...)
	}
	return keys, args, nil
}

// countKeys counts the keys that are asked for.
func (r *Redis) countKeys(groups []KeyGroup) (int, error) {
	n := 0
	for _, g := range groups {
		if len(g.Keys) > maxKeysPerRead {
			return 0, fmt.Errorf("read of %d keys of a shard, at most %d", len(g.Keys), maxKeysPerRead)
		}
		n += len(g.Keys)
	}
	return n, nil
}

// keyArgs are the meta keys of shards, and of each how many keys are asked for, and which.
func (r *Redis) keyArgs(groups []KeyGroup) (keys, args []string, err error) {
	n, err := r.countKeys(groups)
	if err != nil {
		return nil, nil, err
	}
	keys, args = make([]string, len(groups)), make([]string, 0, n+len(groups))
	for i, g := range groups {
		keys[i] = r.meta[g.Shard]
		args = append(append(args, strconv.Itoa(len(g.Keys))), g.Keys...)
	}
	return keys, args, nil
}

// runAll runs a script that has an answer for each of its keys.
func (r *Redis) runAll(ctx context.Context, s *script, keys, args []string) ([]rueidis.RedisMessage, error) {
	answers, err := s.exec(ctx, r.client, keys, args).ToArray()
	if err == nil && len(answers) != len(keys) {
		err = fmt.Errorf("%d answers for %d shards: %w", len(answers), len(keys), errAnswer)
	}
	return answers, err
}

// Likes implements Scripts.
func (r *Redis) Likes(ctx context.Context, groups []PairGroup) ([][]PairValue, error) {
	keys := make([]string, len(groups))
	args := []string{r.windowMS}
	for i, g := range groups {
		if len(g.Pairs) > maxKeysPerRead {
			return nil, fmt.Errorf("look-up of %d likes of a shard, at most %d", len(g.Pairs), maxKeysPerRead)
		}
		keys[i] = r.meta[g.Shard]
		args = append(args, strconv.Itoa(len(g.Pairs)))
		for _, p := range g.Pairs {
			args = append(args, fieldOf(p))
		}
	}
	shards, err := r.runAll(ctx, r.likes, keys, args)
	if err != nil {
		return nil, err
	}
	values := make([][]PairValue, len(groups))
	for i := range shards {
		if values[i], err = parsePairs(shards[i], len(groups[i].Pairs)); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// Homes implements Scripts.
func (r *Redis) Homes(ctx context.Context, groups []KeyGroup) ([]HomeReply, error) {
	keys, args, err := r.keyArgs(groups)
	if err != nil {
		return nil, err
	}
	shards, err := r.runAll(ctx, r.homes, keys, args)
	if err != nil {
		return nil, err
	}
	replies := make([]HomeReply, len(groups))
	for i := range shards {
		if replies[i], err = parseHomeReply(shards[i], len(groups[i].Keys)); err != nil {
			return nil, err
		}
	}
	return replies, nil
}

// Load implements Scripts.
func (r *Redis) Load(ctx context.Context, shard int, watermark int64, bases []Base) (bool, error) {
	args := make([]string, 0, 1+5*len(bases))
	args = append(args, strconv.FormatInt(watermark, 10))
	for _, b := range bases {
		args = append(args, b.Key, strconv.FormatInt(b.Total, 10), strconv.FormatInt(b.Likes, 10),
			strconv.FormatInt(b.TTL.Milliseconds(), 10), b.Marker.String())
	}
	n, err := r.run(ctx, r.load, shard, args).AsInt64()
	return n == 1, err
}

// Spread implements Scripts.
func (r *Redis) Spread(ctx context.Context, shard int, keys []string, width int) ([]Marker, error) {
	args := append([]string{r.windowMS, strconv.Itoa(r.cfg.MaxSpread), strconv.Itoa(width)}, keys...)
	n, err := r.run(ctx, r.spread, shard, args).AsIntSlice()
	markers := make([]Marker, len(n))
	for i := range n {
		markers[i] = Marker(n[i])
	}
	return markers, err
}

// Pending implements Scripts.
func (r *Redis) Pending(ctx context.Context, shard int) (PendingWindows, error) {
	n, err := r.run(ctx, r.pending, shard, nil).AsIntSlice()
	if err != nil {
		return PendingWindows{}, err
	}
	if len(n) != 4 {
		return PendingWindows{}, errAnswer
	}
	return PendingWindows{Micros: n[0], Oldest: n[1], Newest: n[2], Likes: n[3] == 1}, nil
}

// Seal implements Scripts.
func (r *Redis) Seal(ctx context.Context, shard int, watermark SealedWindow, fresh string) (SealReply, error) {
	reply, err := r.run(ctx, r.seal, shard, []string{
		strconv.FormatInt(watermark.ID, 10), watermark.Token, fresh, r.windowMS, strconv.Itoa(maxSealed),
	}).ToArray()
	if err != nil {
		return SealReply{}, err
	}
	if len(reply) != 7 {
		return SealReply{}, errAnswer
	}
	var n [5]int64
	for i := range n {
		if n[i], err = reply[i].AsInt64(); err != nil {
			return SealReply{}, err
		}
	}
	ids, err := reply[5].AsIntSlice()
	if err != nil {
		return SealReply{}, err
	}
	tokens, err := reply[6].AsStrSlice()
	if err != nil || len(tokens) != len(ids) {
		return SealReply{}, errors.Join(errAnswer, err)
	}
	sealed := make([]SealedWindow, len(ids))
	for i := range ids {
		sealed[i] = SealedWindow{ids[i], tokens[i]}
	}
	return SealReply{Time: n[0], RolledBack: n[1] == 1, RestoreDue: n[2] == 1, Windows: int(n[3]), More: n[4] == 1, Sealed: sealed}, nil
}

// RestoreMarkers implements Scripts.
func (r *Redis) RestoreMarkers(ctx context.Context, shard int, markers map[string]Marker) error {
	args := make([]string, 0, 2*len(markers))
	for key, marker := range markers {
		args = append(args, key, marker.String())
	}
	return r.run(ctx, r.restore, shard, args).Error()
}

// Scan implements Scripts.
func (r *Redis) Scan(ctx context.Context, shard int, window int64, cursor uint64) (uint64, WindowPart, error) {
	key := r.prefix(shard) + "w:" + strconv.FormatInt(window, 10)
	chunk, err := r.client.Do(ctx, r.client.B().Hscan().Key(key).Cursor(cursor).Count(scanCount).Build()).AsScanEntry()
	if err != nil {
		return 0, WindowPart{}, err
	}
	part, err := parseWindow(chunk.Elements)
	return chunk.Cursor, part, err
}

// Begin implements Scripts.
func (r *Redis) Begin(ctx context.Context, shard int, window SealedWindow, previous int64, gen string) (bool, error) {
	n, err := r.run(ctx, r.begin, shard, []string{
		strconv.FormatInt(window.ID, 10), window.Token, strconv.FormatInt(previous, 10), gen,
	}).AsInt64()
	return n == 1, err
}

// Move implements Scripts.
func (r *Redis) Move(ctx context.Context, shard int, window int64, moves Moves) error {
	return r.run(ctx, r.move, shard, moveArgs(window, moves)).Error()
}

// End implements Scripts.
func (r *Redis) End(ctx context.Context, shard int, window int64, likes int) error {
	return r.run(ctx, r.end, shard, []string{strconv.FormatInt(window, 10), strconv.Itoa(likes)}).Error()
}

// Discard implements Scripts.
func (r *Redis) Discard(ctx context.Context, shard int, window int64, gen string) error {
	return r.run(ctx, r.discard, shard, []string{strconv.FormatInt(window, 10), gen}).Error()
}

// Sweep implements Scripts.
func (r *Redis) Sweep(ctx context.Context, shard int) error {
	return r.run(ctx, r.sweep, shard, []string{strconv.Itoa(maxSwept)}).Error()
}

// prefix begins the names of all keys of a shard.
func (r *Redis) prefix(shard int) string { return strings.TrimSuffix(r.meta[shard], "meta") }

func (r *Redis) run(ctx context.Context, s *script, shard int, args []string) rueidis.RedisResult {
	return s.exec(ctx, r.client, []string{r.meta[shard]}, args)
}

// Claimed implements Scripts.
func (r *Redis) Claimed(ctx context.Context, shard int, ids []counter.RequestID, now int64) ([]ClaimValue, error) {
	buckets := map[string][]int{} // the positions in ids that may be there
	for i, id := range ids {
		if made, timed := id.Time(); timed {
			bucket := "id:" + strconv.FormatInt(made-made%timedBucket, 10)
			buckets[bucket] = append(buckets[bucket], i)
			continue
		}
		last := now / (r.cfg.Dedupe + counter.MaxEarly).Milliseconds()
		for b := last - 2; b <= last+1; b++ {
			bucket := "any:" + strconv.FormatInt(b, 10)
			buckets[bucket] = append(buckets[bucket], i)
		}
	}
	commands := make(rueidis.Commands, 0, len(buckets))
	places := make([][]int, 0, len(buckets))
	for bucket, positions := range buckets {
		fields := make([]string, len(positions))
		for k, i := range positions {
			fields[k] = ids[i].Bytes()
		}
		commands = append(commands, r.client.B().Hmget().Key(r.prefix(shard)+bucket).Field(fields...).Build())
		places = append(places, positions)
	}
	claims := make([]ClaimValue, len(ids))
	for c, result := range r.client.DoMulti(ctx, commands...) {
		cells, err := result.ToMessage()
		if err == nil {
			err = eachCell(cells, len(places[c]), func(k int, cell *rueidis.RedisMessage) (err error) {
				claims[places[c][k]].Known = true
				claims[places[c][k]].Value, err = cell.ToString()
				return err
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return claims, nil
}
