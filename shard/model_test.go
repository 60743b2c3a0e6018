package shard_test

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

var (
	modelSeed = flag.Uint64("model.seed", 0, "run the model test with this seed alone")
	modelRuns = flag.Int("model.runs", modelRunsByDefault, "seeds for each variant of the model tests on the twin")
	realRuns  = flag.Int("model.real", 30, "seeds for each variant of the model test on real servers")
)

const (
	modelWindow = 5 * time.Second
	modelDedupe = 60 * time.Second
)

// modelRedis is a Redis of one shard whose clock and past the model controls.
type modelRedis interface {
	// Scripts opens the scripts for one more process.
	Scripts() shard.Scripts
	Micros() int64
	Advance(d time.Duration)
	// Snapshot returns a function that takes everything but the clock back to this moment.
	Snapshot() (restore func())
	// Evict drops the cached bases of a key, EvictLikes the membership of an hour of Unix time.
	Evict(key string)
	EvictLikes(hour int64)
	FlushAll()
	// Windows are the ids of all windows.
	Windows() []int64
}

// modelLedger is a ledger that the model can look into.
type modelLedger interface {
	flush.WindowLedger
	// Totals and LikeTotals are by key. LikedPairs are the pairs that are liked.
	Totals() map[string]int64
	LikeTotals() map[string]int64
	LikedPairs() map[counter.Pair]bool
}

// operation is one change as its caller sees it. It also adds 1 to a key of its own, in the same batch: the
// ledger's total of that key says how often the operation was counted.
type operation struct {
	n     int
	key   string
	delta int64
	id    string // empty if its caller cannot send it again
	// issued is when, by the Redis clock in ms.
	issued int64
	sent   bool
	acked  bool
	done   bool // acknowledged or refused: not sent again but to see that it is known
}

func (o *operation) own() string { return fmt.Sprint("op/", o.n) }

func (o *operation) change() counter.Change {
	return counter.Change{
		Entries:   []counter.Entry{{Key: o.key, Delta: o.delta}, {Key: o.own(), Delta: 1}},
		RequestID: counter.ParseRequestID(o.id),
	}
}

// world runs two flush workers, two servers and some readers in steps: each script and each transaction is
// one step, between two of which anyone may run, be killed, fail, lose an answer or repeat itself.
//
// The invariants, over all operations:
//
//	R  while Redis does not go back in time, a read lies between what was acknowledged before it began and
//	   what had been issued when it ended;
//	F  while Redis does not go back in time, the drained ledger holds each acknowledged operation once, and
//	   each other at most once;
//	B  however Redis goes back in time, the ledger holds no operation twice and lacks no acknowledged one
//	   but those that Redis itself lost, and fresh reads equal it after the drain;
//	Z  what model_admin_test.go says of the key that is reset now and then, to which R and F do not apply;
//	L  likes are what model_likes_test.go says, and the total of a key is that of its operations and of the
//	   pairs that are liked.
type world struct {
	t        *testing.T
	seed     uint64
	rnd      *rand.Rand
	redis    modelRedis
	ledger   modelLedger
	rollback bool

	workers []*actor
	readers []*reading
	servers []*shard.Store
	ops     []*operation
	issued  map[string]int64
	acked   map[string]int64
	lost    map[int]bool // operations that Redis lost before the ledger had them
	past    []func()
	// epoch counts the rollbacks, and noticed is the last after which a worker has begun a round that it
	// finished, and no other was still at one that had begun before: that one may have read a window which
	// Redis then lost, and give it to the ledger yet. A retry in between is the documented exception of promise 4.
	epoch, noticed int
	rounds         map[*actor]int // the epoch in which the rounds under way began
	ahead          time.Duration  // by which the Redis clock once was
	likes          likes
	resets         resets
}

type reading struct {
	*actor
	low   int64
	got   counter.Reading
	likes bool // it reads an actor's likes, and not a count
	reset bounds
	likesSeen
}

func newWorld(t *testing.T, seed uint64, redis modelRedis, ledger modelLedger, rollback bool) *world {
	w := &world{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), redis: redis, ledger: ledger, rollback: rollback,
		issued: map[string]int64{}, acked: map[string]int64{}, lost: map[int]bool{}, rounds: map[*actor]int{},
	}
	w.likes = newLikes(w.rnd)
	// Some worlds live to see another hour, and so another bucket of membership.
	w.redis.Advance(time.Hour - time.Duration(w.rnd.IntN(200))*time.Second)
	for range 2 {
		w.workers = append(w.workers, w.newWorker())
		w.servers = append(w.servers, w.newServer())
	}
	return w
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newModelStore(scripts shard.Scripts, ledger shard.Ledger) *shard.Store {
	return shard.New(scripts, ledger, shard.Config{
		Shards: 1, Dedupe: modelDedupe, BaseTTL: time.Hour, MissingTTL: time.Hour,
		Metrics: shard.NewMetrics(prometheus.NewRegistry()), Logger: quietLog(),
	})
}

func newModelWorker(scripts shard.Scripts, ledger flush.WindowLedger) *flush.Worker {
	return flush.NewWorker(scripts, ledger, flush.WorkerConfig{
		Shards: 1, Window: modelWindow, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
		Registerer: prometheus.NewRegistry(), Logger: quietLog(),
	})
}

func (w *world) newServer() *shard.Store {
	scripts := &flakyScripts{Scripts: w.redis.Scripts(), rnd: rand.New(rand.NewPCG(w.rnd.Uint64(), 1))}
	s := newModelStore(scripts, &serverLedger{w.ledger, w})
	s.RememberLikers(2 * w.rnd.IntN(2))
	return s
}

func (w *world) newWorker() *actor {
	return newActor(func(a *actor) {
		worker := newModelWorker(&steppedScripts{w.redis.Scripts(), a}, &steppedLedger{w.ledger, a})
		defer delete(w.rounds, a)
		for a.ctx.Err() == nil {
			w.rounds[a] = w.epoch
			epoch := w.epoch
			for _, began := range w.rounds {
				epoch = min(epoch, began)
			}
			if err := worker.Round(a.ctx, 0); err == nil {
				w.noticed = max(w.noticed, epoch)
			}
		}
	})
}

func (w *world) newReading() *reading {
	key, who := w.anyKey(), w.anyActor()
	r := &reading{low: w.acked[key], likes: w.rnd.IntN(4) == 0, reset: w.resets.bounds, likesSeen: w.seeLikes(key, who)}
	r.actor = newActor(func(a *actor) {
		store := newModelStore(&steppedScripts{w.redis.Scripts(), a}, &steppedLedger{w.ledger, a})
		if r.likes {
			r.states, r.err = store.Likes(a.ctx, who, modelKeys)
		} else {
			r.got = store.Counts(a.ctx, []string{key})[0]
		}
		_ = store.Close(a.ctx)
	})
	return r
}

var modelKeys = []string{"a", "b", "c"}

func (w *world) anyKey() string { return modelKeys[w.rnd.IntN(3)] }

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.close()
	w.t.Fatalf("%s\nrepeat with: -run '^%s$' -model.seed %d", fmt.Sprintf(format, args...), w.t.Name(), w.seed)
}

func (w *world) close() {
	for _, a := range w.workers {
		a.kill()
	}
	for _, r := range w.readers {
		r.kill()
	}
	for _, s := range w.servers {
		_ = s.Close(w.t.Context())
	}
	w.workers, w.readers, w.servers = nil, nil, nil
}

// run takes random steps, drains, and checks.
func (w *world) run() {
	w.t.Helper()
	for range 120 + w.rnd.IntN(600) {
		w.step()
	}
	w.drain()
	w.check()
	if w.rollback && len(w.past) > 0 {
		// Nothing is written after this: reads must heal by themselves.
		w.goBackTo(w.past[w.rnd.IntN(len(w.past))])
		w.drain()
		w.check()
	}
	w.close()
}

func (w *world) step() {
	switch x := w.rnd.Float64(); {
	case x < .16:
		w.issue()
	case x < .17:
		w.resetKey()
	case x < .21:
		w.retry()
	case x < .275:
		w.setLike()
	case x < .29:
		w.setDatedLike()
	case x < .32:
		w.retryLike()
	case x < .42:
		w.advance(time.Duration(w.rnd.IntN(3000)) * time.Millisecond)
	case x < .73:
		w.workers[w.rnd.IntN(2)].advance(w.fault())
	case x < .75:
		i := w.rnd.IntN(2)
		w.workers[i].kill()
		w.workers[i] = w.newWorker()
	case x < .76:
		w.restartServer(w.rnd.IntN(2))
	case x < .78:
		w.redis.Evict(w.anyKey())
	case x < .79:
		w.redis.EvictLikes(w.redis.Micros()/(hourMS*1000) - w.rnd.Int64N(2))
	case x < .80:
		w.silence()
	case x < .82:
		w.look()
	case x < .87:
		w.readers = append(w.readers, w.newReading())
	case x < .98:
		w.read()
	case w.rollback:
		w.goBack()
	}
}

func (w *world) restartServer(i int) {
	_ = w.servers[i].Close(w.t.Context())
	w.servers[i] = w.newServer()
}

// advance moves the Redis clock on. Now and then another host takes over whose clock is behind by less than
// a window, as operators are asked to ensure; not where Redis forgets what was sealed as well, nor while likes are
// set that nobody knows the last moment of.
func (w *world) advance(d time.Duration) {
	w.redis.Advance(d)
	if w.ahead = max(0, w.ahead-d); !w.rollback && w.ahead == 0 && !w.likes.silent.Load() && w.rnd.IntN(10) == 0 {
		w.ahead = time.Duration(w.rnd.Int64N(int64(modelWindow)))
		w.redis.Advance(-w.ahead)
	}
}

// fault chooses what happens to a step.
func (w *world) fault() fault {
	switch w.rnd.IntN(40) {
	case 0:
		return fails
	case 1:
		return losesAnswer
	case 2:
		return repeats
	default:
		return happens
	}
}

func (w *world) issue() {
	o := &operation{n: len(w.ops), key: w.anyKey(), delta: []int64{1, 1, 2, 5}[w.rnd.IntN(4)]}
	now := time.UnixMicro(w.redis.Micros())
	o.issued = now.UnixMilli()
	switch w.rnd.IntN(5) {
	case 0:
	case 1:
		o.id = fmt.Sprint("opaque-", o.n)
	case 2:
		if !w.rollback { // an id is judged by its own time, so one from the future outlives a rollback
			now = now.Add(time.Duration(w.rnd.IntN(20_000)) * time.Millisecond)
		}
		fallthrough
	default:
		o.id = storetest.NewID(now)
	}
	w.ops = append(w.ops, o)
	w.issued[o.key] += o.delta
	w.send(o)
}

// retry sends an earlier operation again, be it in doubt or answered.
func (w *world) retry() {
	if len(w.ops) == 0 || w.noticed < w.epoch {
		return
	}
	o := w.ops[w.rnd.IntN(len(w.ops))]
	made, timed := o.change().RequestID.Time()
	if !timed {
		made = o.issued
	}
	age, dedupe := w.redis.Micros()/1000-made, modelDedupe.Milliseconds()
	if o.id == "" || !timed && (o.done || age > dedupe) || timed && o.done && age > 2*dedupe {
		return // an id without a time is forgotten after the dedupe window
	}
	w.send(o)
}

func (w *world) send(o *operation) {
	r, err := w.servers[w.rnd.IntN(2)].Apply(w.t.Context(), o.change())
	w.resets.answered(w, o, r, err)
	first := !o.sent
	o.sent = true
	if err == nil && first && r.Outcome != counter.Applied {
		w.failf("operation %d was never sent before and is %v", o.n, r.Outcome)
	}
	if w.rnd.IntN(8) == 0 {
		return // the caller never hears of it
	}
	switch {
	case errors.Is(err, counter.ErrInDoubt): // the answer was lost, and the clock jumped meanwhile
	case err != nil:
		o.done = true
		made, timed := o.change().RequestID.Time()
		if !w.rollback && (!timed || !errors.Is(err, counter.ErrRequestIDExpired) || w.redis.Micros()/1000-made <= modelDedupe.Milliseconds()) {
			w.failf("operation %d was refused: %v", o.n, err)
		}
	case o.acked && r.Outcome != counter.Duplicate && !w.rollback:
		w.failf("operation %d was acknowledged and is counted again: %v", o.n, r.Outcome)
	case !o.acked:
		o.acked, o.done = true, true
		w.acked[o.key] += o.delta
	}
}

// read advances a reader and judges what it read.
func (w *world) read() {
	if len(w.readers) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.readers))
	r := w.readers[i]
	if !r.advance(w.fault()) {
		return
	}
	w.readers = slices.Delete(w.readers, i, i+1)
	if w.rollback {
		return
	}
	if r.likes {
		w.judgeStates(&r.likesSeen)
		return
	}
	low, high := r.bounds()
	if r.got.Err == nil && !r.spoilt && (r.got.Likes < low || r.got.Likes > high) {
		w.failf("L: read %d likes of %s, which had %d to %d", r.got.Likes, r.key, low, high)
	}
	if r.key == resetKey {
		low, high = low+r.reset.low, high+r.reset.high
	} else {
		low, high = low+r.low, high+w.issued[r.key]
	}
	if r.got.Err == nil && !r.spoilt && (r.got.Value < low || r.got.Value > high) {
		w.failf("R or Z: read %d of %s, where %d was acknowledged before and %d issued after", r.got.Value, r.key, low, high)
	}
}

func (w *world) drain() {
	for _, a := range w.workers {
		a.kill()
	}
	w.workers = nil
	worker := newModelWorker(w.redis.Scripts(), w.ledger)
	for range 4 {
		w.redis.Advance(2 * modelWindow)
		if err := worker.Round(w.t.Context(), 0); err != nil {
			w.failf("drain: %v", err)
		}
	}
	if left := w.redis.Windows(); len(left) > 0 {
		w.failf("windows %v are left", left)
	}
}

func (w *world) check() {
	totals := w.ledger.Totals()
	want := map[string]int64{}
	for _, o := range w.ops {
		n := totals[o.own()]
		want[o.key] += n * o.delta
		switch {
		case n > 1:
			w.failf("operation %d was counted %d times", o.n, n)
		case n == 0 && o.acked && !w.lost[o.n]:
			w.failf("operation %d was acknowledged and is not counted", o.n)
		}
	}
	store := newModelStore(w.redis.Scripts(), w.ledger)
	defer store.Close(w.t.Context()) //nolint:errcheck // a test's store
	likes := w.checkLikes(store)
	for _, key := range modelKeys {
		if want[key] += likes[key]; key == resetKey {
			want[key] = w.checkReset(totals[key], likes[key])
		}
		if totals[key] != want[key] {
			w.failf("the ledger holds %d of %s, the operations counted and %d likes make %d", totals[key], key, likes[key], want[key])
		}
		got := store.Counts(w.t.Context(), []string{key})[0]
		if got.Err != nil || got.Value != totals[key] || got.Likes != likes[key] {
			w.failf("a fresh read of %s is %d with %d likes, %v; the ledger holds %d with %d",
				key, got.Value, got.Likes, got.Err, totals[key], likes[key])
		}
	}
}

// exerciseModel runs worlds of one variant, each from a seed of its own.
func exerciseModel(t *testing.T, runs int, rollback bool, open func(t *testing.T) (modelRedis, modelLedger)) {
	seeds := make([]uint64, runs)
	for i := range seeds {
		seeds[i] = rand.Uint64()
	}
	if *modelSeed != 0 {
		seeds = []uint64{*modelSeed}
	}
	for _, seed := range seeds {
		redis, ledger := open(t)
		newWorld(t, seed, redis, ledger, rollback).run()
	}
}
