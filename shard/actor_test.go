package shard_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// fault is what happens to a step.
type fault int

const (
	happens     fault = iota
	fails             // it does not happen, and fails
	losesAnswer       // it happens, and seems to fail
	repeats           // it happens twice
)

var errFault = errors.New("connection reset")

// actor is a process that stops before each of its steps until it is told to go on.
type actor struct {
	ctx    context.Context
	cancel context.CancelFunc
	parked chan struct{}
	faults chan fault
	done   chan struct{}
}

// newActor starts f and returns when it has stopped before its first step.
func newActor(f func(a *actor)) *actor {
	a := &actor{parked: make(chan struct{}), faults: make(chan fault), done: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(a.done)
		f(a)
	}()
	a.await()
	return a
}

func (a *actor) await() (finished bool) {
	select {
	case <-a.parked:
		return false
	case <-a.done:
		return true
	}
}

// advance lets one step happen and returns when the actor has stopped before the next, or has finished.
func (a *actor) advance(f fault) (finished bool) {
	select {
	case a.faults <- f:
		return a.await()
	case <-a.done:
		return true
	}
}

// kill ends the actor where it stands.
func (a *actor) kill() {
	a.cancel()
	for {
		select {
		case <-a.parked:
		case <-a.done:
			return
		}
	}
}

// step is called by the actor's own goroutines, one at a time.
func step[T any](a *actor, run func() (T, error)) (T, error) {
	var none T
	select {
	case a.parked <- struct{}{}:
	case <-a.ctx.Done():
		return none, a.ctx.Err()
	}
	var f fault
	select {
	case f = <-a.faults:
	case <-a.ctx.Done():
		return none, a.ctx.Err()
	}
	switch f {
	case fails:
		return none, errFault
	case losesAnswer:
		_, _ = run()
		return none, errFault
	case repeats:
		_, _ = run()
	case happens:
	}
	return run()
}

func stepError(a *actor, run func() error) error {
	_, err := step(a, func() (struct{}, error) { return struct{}{}, run() })
	return err
}

// steppedScripts makes each script a step of an actor.
type steppedScripts struct {
	shard.Scripts
	a *actor
}

func (s *steppedScripts) Read(ctx context.Context, groups []shard.KeyGroup) ([]shard.ReadReply, error) {
	return step(s.a, func() ([]shard.ReadReply, error) { return s.Scripts.Read(ctx, groups) })
}

func (s *steppedScripts) Homes(ctx context.Context, groups []shard.KeyGroup) ([]shard.HomeReply, error) {
	return step(s.a, func() ([]shard.HomeReply, error) { return s.Scripts.Homes(ctx, groups) })
}

func (s *steppedScripts) Likes(ctx context.Context, groups []shard.PairGroup) ([][]shard.PairValue, error) {
	return step(s.a, func() ([][]shard.PairValue, error) { return s.Scripts.Likes(ctx, groups) })
}

func (s *steppedScripts) Load(ctx context.Context, n int, watermark int64, bases []shard.Base) (bool, error) {
	return step(s.a, func() (bool, error) { return s.Scripts.Load(ctx, n, watermark, bases) })
}

func (s *steppedScripts) Seal(ctx context.Context, n int, watermark shard.SealedWindow, fresh string) (shard.SealReply, error) {
	return step(s.a, func() (shard.SealReply, error) { return s.Scripts.Seal(ctx, n, watermark, fresh) })
}

func (s *steppedScripts) RestoreMarkers(ctx context.Context, n int, markers map[string]shard.Marker) error {
	return stepError(s.a, func() error { return s.Scripts.RestoreMarkers(ctx, n, markers) })
}

func (s *steppedScripts) Scan(ctx context.Context, n int, window int64, cursor uint64) (next uint64, part shard.WindowPart, err error) {
	err = stepError(s.a, func() (err error) {
		next, part, err = s.Scripts.Scan(ctx, n, window, cursor)
		return err
	})
	return next, part, err
}

func (s *steppedScripts) Begin(ctx context.Context, n int, window shard.SealedWindow, previous int64, gen string) (bool, error) {
	return step(s.a, func() (bool, error) { return s.Scripts.Begin(ctx, n, window, previous, gen) })
}

// Move moves one key a step, and then all markers.
func (s *steppedScripts) Move(ctx context.Context, n int, window int64, moves shard.Moves) error {
	var steps []shard.Moves
	for i := range moves.Deltas {
		steps = append(steps, shard.Moves{Deltas: moves.Deltas[i : i+1]})
	}
	for _, m := range append(steps, shard.Moves{Markers: moves.Markers}) {
		if err := stepError(s.a, func() error { return s.Scripts.Move(ctx, n, window, m) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *steppedScripts) End(ctx context.Context, n int, window int64, likes int) error {
	return stepError(s.a, func() error { return s.Scripts.End(ctx, n, window, likes) })
}

func (s *steppedScripts) Discard(ctx context.Context, n int, window int64, gen string) error {
	return stepError(s.a, func() error { return s.Scripts.Discard(ctx, n, window, gen) })
}

func (s *steppedScripts) Sweep(ctx context.Context, n int) error {
	return stepError(s.a, func() error { return s.Scripts.Sweep(ctx, n) })
}

// steppedLedger makes each transaction a step of an actor.
type steppedLedger struct {
	flush.WindowLedger
	a *actor
}

// LockShard grants every worker the lock: the protocol's correctness does not rest on it.
func (l *steppedLedger) LockShard(context.Context, int) (flush.ShardLock, bool, error) {
	return flush.ShardLock{Held: func(context.Context) error { return nil }, Release: func() {}}, true, l.a.ctx.Err()
}

func (l *steppedLedger) Watermark(ctx context.Context, n int) (shard.SealedWindow, error) {
	return step(l.a, func() (shard.SealedWindow, error) { return l.WindowLedger.Watermark(ctx, n) })
}

func (l *steppedLedger) Apply(ctx context.Context, w flush.Window) (flush.Applied, error) {
	return step(l.a, func() (flush.Applied, error) { return l.WindowLedger.Apply(ctx, w) })
}

func (l *steppedLedger) Bases(ctx context.Context, keys []string) (shard.LedgerBases, error) {
	return step(l.a, func() (shard.LedgerBases, error) { return l.WindowLedger.Bases(ctx, keys) })
}

func (l *steppedLedger) Likes(ctx context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	return step(l.a, func() (shard.LedgerLikes, error) { return l.WindowLedger.Likes(ctx, pairs) })
}

// flakyScripts loses some answers of writes, before or after the script ran.
type flakyScripts struct {
	shard.Scripts
	mu  sync.Mutex
	rnd *rand.Rand
}

func (s *flakyScripts) Write(ctx context.Context, b *shard.WriteBatch) (shard.WriteReply, error) {
	s.mu.Lock()
	x := s.rnd.IntN(30)
	s.mu.Unlock()
	switch x {
	case 0:
		return shard.WriteReply{}, errFault
	case 1:
		_, _ = s.Scripts.Write(ctx, b)
		return shard.WriteReply{}, errFault
	}
	return s.Scripts.Write(ctx, b)
}
