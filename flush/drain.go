package flush

import (
	"context"
	"maps"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// moveChunk is how many fields one script moves from a window to the bases: a millisecond or two of Redis.
const moveChunk = 1_000

// drain takes the windows that are due of a shard through the ledger and out of Redis (rules 3 to 5), oldest first.
// Those of a backlog are merged, so that a key is upserted once for several of them: see merge.
type drain struct {
	worker *Worker
	shard  int
	now    int64 // by the Redis clock
	due    []shard.SealedWindow
	// ahead is the first window that is due, if it was scanned and could not be merged with the one before it.
	ahead *scannedWindow
}

// scannedWindow is a sealed window with what it holds.
type scannedWindow struct {
	shard.SealedWindow
	shard.WindowPart
}

// drained is what became of a window.
type drained int

const (
	applied   drained = iota
	discarded         // the ledger had it already
	postponed         // its turn comes later
)

// next drains the first windows that are due. Watermark is that of a moment ago: the ledger's own word, in the
// transaction, decides.
func (d *drain) next(ctx context.Context, watermark int64) (drained, error) {
	started := time.Now()
	if d.due[0].ID <= watermark {
		return discarded, d.discard(ctx, d.due[:1])
	}
	windows, merged, err := d.gather(ctx)
	if err != nil || len(windows) == 0 {
		return postponed, err
	}
	s := d.worker.steps(ctx)
	var result Applied
	s.do("apply", func(ctx context.Context) (err error) {
		result, err = d.worker.ledger.Apply(ctx, merged)
		return err
	})
	if s.err != nil {
		return postponed, s.err
	}
	if !result.OK {
		// Of later windows nobody knows whether they were applied. They stay due.
		d.ahead = nil
		had := 1
		for had < len(windows) && windows[had].ID <= result.Previous {
			had++
		}
		return discarded, d.discard(ctx, d.due[:had])
	}
	// The ledger has them all, and each is finished like one that was applied alone after the one before it. What is
	// not finished yet is taken away from bases that are loaded (rule 8), and discarded if this worker dies.
	previous := result.Previous
	for _, w := range windows {
		if err := d.finish(ctx, w, previous, result.Adjusted); err != nil {
			return postponed, err
		}
		previous = w.ID
	}
	d.due = d.due[len(windows):]
	d.worker.metrics.applied(windows, result, started)
	return applied, nil
}

// finish moves what the ledger applied of a window, on top of the watermark previous, from the window to the bases.
func (d *drain) finish(ctx context.Context, window *scannedWindow, previous int64, adjusted map[string]struct{}) error {
	w, n := d.worker, d.shard
	s := w.steps(ctx)
	s.do("begin", func(ctx context.Context) error {
		rolledBack, err := w.scripts.Begin(ctx, n, window.SealedWindow, previous, random())
		if rolledBack {
			w.rolledBack(ctx, n)
		}
		return err
	})
	for _, moves := range chunks(window.WindowPart, adjusted) {
		s.do("move", func(ctx context.Context) error { return w.scripts.Move(ctx, n, window.ID, moves) })
	}
	s.do("end", func(ctx context.Context) error { return w.scripts.End(ctx, n, window.ID, len(window.Likes)) })
	return s.err
}

// discard deletes windows that the ledger has already, the first that are due.
func (d *drain) discard(ctx context.Context, windows []shard.SealedWindow) error {
	w := d.worker
	s := w.steps(ctx)
	for _, window := range windows {
		w.metrics.discarded.Inc()
		w.cfg.Logger.WarnContext(ctx, "window discarded: the ledger has it already", "shard", d.shard, "window", window.ID)
		s.do("discard", func(ctx context.Context) error { return w.scripts.Discard(ctx, d.shard, window.ID, random()) })
	}
	d.due = d.due[len(windows):]
	return s.err
}

// gather scans the first windows that are due and merges as many as may be applied in one transaction: none if the
// first must wait.
func (d *drain) gather(ctx context.Context) (windows []*scannedWindow, merged Window, err error) {
	for len(windows) < len(d.due) {
		next := d.ahead
		if d.ahead = nil; next == nil {
			if next, err = d.scan(ctx, d.due[len(windows)]); err != nil {
				return nil, Window{}, err
			}
		}
		s := d.worker.steps(ctx)
		var wait bool
		s.do("markers", func(ctx context.Context) (err error) {
			wait, err = d.worker.mustWait(ctx, d.shard, next.Likes, time.Duration(d.now-next.ID)*time.Millisecond)
			return err
		})
		if s.err != nil {
			return nil, Window{}, s.err
		}
		if wait {
			d.ahead = next
			break
		}
		if len(windows) == 0 {
			merged = Window{Shard: d.shard, First: next.ID, ID: next.ID, Token: next.Token, WindowPart: next.WindowPart}
		} else if !merged.merge(next, len(windows) == 1) {
			d.ahead = next
			break
		}
		windows = append(windows, next)
		if !merged.takesMore(d.due, len(windows)) {
			break
		}
	}
	return windows, merged, nil
}

// scan reads a sealed window. Nothing writes to it any more, so it may be read in chunks (rule 2).
func (d *drain) scan(ctx context.Context, sealed shard.SealedWindow) (*scannedWindow, error) {
	window := &scannedWindow{sealed, shard.WindowPart{
		Deltas: map[string]int64{}, LikeDeltas: map[string]int64{},
		Likes: map[counter.Pair]shard.PendingLike{}, Markers: map[string]shard.Marker{},
	}}
	s := d.worker.steps(ctx)
	s.do("scan", func(ctx context.Context) error {
		for cursor := uint64(0); ; {
			next, part, err := d.worker.scripts.Scan(ctx, d.shard, sealed.ID, cursor)
			if err != nil {
				return err
			}
			maps.Copy(window.Deltas, part.Deltas)
			maps.Copy(window.LikeDeltas, part.LikeDeltas)
			maps.Copy(window.Likes, part.Likes)
			maps.Copy(window.Markers, part.Markers)
			if next == 0 {
				return nil
			}
			cursor = next
		}
	})
	return window, s.err
}

// chunks are the moves of a window: all its fields but likes, and for each key whether the ledger applied something else
// than the window holds of it.
func chunks(w shard.WindowPart, adjusted map[string]struct{}) []shard.Moves {
	var steps []shard.Moves
	fields := moveChunk // in the last step
	last := func() *shard.Moves {
		if fields == moveChunk {
			steps, fields = append(steps, shard.Moves{}), 0
		}
		fields++
		return &steps[len(steps)-1]
	}
	for key, delta := range w.Deltas {
		_, reload := adjusted[key]
		s := last()
		s.Deltas = append(s.Deltas, shard.MovedDelta{Key: key, Delta: delta, Likes: w.LikeDeltas[key], Reload: reload})
	}
	for key := range adjusted {
		// The likes of a key may all have been taken for repeats, and the window holds no delta of it.
		if _, there := w.Deltas[key]; !there {
			s := last()
			s.Deltas = append(s.Deltas, shard.MovedDelta{Key: key, Reload: true})
		}
	}
	for key := range w.Markers {
		s := last()
		s.Markers = append(s.Markers, key)
	}
	return steps
}
