package twin

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// Ledger is a flush.WindowLedger in memory. Each method is one atomic step, as a transaction is.
type Ledger struct {
	mu         sync.Mutex
	watermarks []shard.SealedWindow
	rows       map[ledgerRow]*ledgerTotal
	likes      map[counter.Pair]counter.LikeState // also of pairs that are not liked any more
}

type ledgerRow struct {
	key   string
	shard int
}

type ledgerTotal struct {
	total, likes int64
	spread       shard.Marker
}

var _ flush.WindowLedger = (*Ledger)(nil)

// NewLedger makes an empty ledger.
func NewLedger(shards int) *Ledger {
	return &Ledger{
		watermarks: make([]shard.SealedWindow, shards), rows: map[ledgerRow]*ledgerTotal{},
		likes: map[counter.Pair]counter.LikeState{},
	}
}

// LockShard always succeeds: the protocol's correctness does not rest on the lock.
func (l *Ledger) LockShard(context.Context, int) (flush.ShardLock, bool, error) {
	return flush.ShardLock{Held: func(context.Context) error { return nil }, Release: func() {}}, true, nil
}

// Watermark implements flush.WindowLedger.
func (l *Ledger) Watermark(_ context.Context, n int) (shard.SealedWindow, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watermarks[n], nil
}

// Apply implements flush.WindowLedger.
func (l *Ledger) Apply(_ context.Context, w flush.Window) (flush.Applied, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	previous := l.watermarks[w.Shard].ID
	if w.Oldest() <= previous {
		return flush.Applied{Previous: previous}, nil
	}
	applied := flush.Applied{OK: true, Previous: previous, Adjusted: map[string]struct{}{}}
	likes := map[string]int64{} // what likes have changed, by key
	for pair, like := range w.Likes {
		likes[pair.Key] += l.set(pair, like)
	}
	keys := maps.Clone(likes)
	maps.Copy(keys, w.Deltas)
	maps.Copy(keys, w.LikeDeltas)
	for key := range keys {
		l.add(ledgerRow{key, w.Shard}, w.Deltas[key], w.LikeDeltas[key], likes[key], &applied)
	}
	for key, marker := range w.Markers {
		l.row(ledgerRow{key, w.Shard}).spread = marker
	}
	l.watermarks[w.Shard] = shard.SealedWindow{ID: w.ID, Token: w.Token}
	return applied, nil
}

// set sets a pair and returns what that adds to its key. A repeat only matters if it is none after all. An unlike that
// is no repeat leaves a state even where there was none, by which an older like is known to be older.
func (l *Ledger) set(pair counter.Pair, like shard.PendingLike) (delta int64) {
	old, there := l.likes[pair]
	repeat := like.Since < like.Micros
	switch {
	case !there && !like.Liked && repeat:
		return 0
	case there && (like.Micros <= old.At.UnixMicro() || repeat && like.Liked == old.Liked):
		return 0
	}
	l.likes[pair] = counter.LikeState{Liked: like.Liked, At: time.UnixMicro(like.Micros)}
	switch {
	case like.Liked && !old.Liked:
		return 1
	case !like.Liked && old.Liked:
		return -1
	}
	return 0
}

// add adds to a row a window's delta, with what likes have changed in place of what they were supposed to.
func (l *Ledger) add(name ledgerRow, delta, supposed, likes int64, applied *flush.Applied) {
	if off := likes - supposed; off != 0 {
		applied.Adjusted[name.key] = struct{}{}
		applied.CorrectedLikes += int(max(off, -off))
		delta = counter.AddSaturating(delta, off)
	}
	if delta == 0 && likes == 0 {
		return
	}
	row := l.row(name)
	total := counter.AddSaturating(row.total, delta)
	if total-row.total != delta {
		applied.Adjusted[name.key] = struct{}{}
		applied.Clipped++
	}
	row.total, row.likes = total, row.likes+likes
}

func (l *Ledger) row(name ledgerRow) *ledgerTotal {
	row := l.rows[name]
	if row == nil {
		row = &ledgerTotal{}
		l.rows[name] = row
	}
	return row
}

// Likes implements shard.Ledger.
func (l *Ledger) Likes(_ context.Context, pairs []counter.Pair) (shard.LedgerLikes, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	likes := shard.LedgerLikes{Watermarks: l.watermarkIDs()}
	for _, pair := range pairs {
		likes.States = append(likes.States, l.likes[pair])
	}
	return likes, nil
}

// Likers implements shard.Ledger.
func (l *Ledger) Likers(_ context.Context, key string, most int, visit func(actor []byte)) ([]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for pair := range l.likes {
		if pair.Key == key && most > 0 {
			most--
			visit([]byte(pair.Actor))
		}
	}
	return l.watermarkIDs(), nil
}

// watermarkIDs are the watermarks by shard number.
func (l *Ledger) watermarkIDs() []int64 {
	ids := make([]int64, len(l.watermarks))
	for n, w := range l.watermarks {
		ids[n] = w.ID
	}
	return ids
}

// Bases implements shard.Ledger.
func (l *Ledger) Bases(_ context.Context, keys []string) (shard.LedgerBases, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bases := shard.LedgerBases{Watermarks: l.watermarkIDs()}
	for _, key := range keys {
		for n := range l.watermarks {
			if row, ok := l.rows[ledgerRow{key, n}]; ok {
				bases.Rows = append(bases.Rows, shard.LedgerRow{
					Key: key, Shard: n, Total: row.total, Likes: row.likes, Spread: row.spread,
				})
			}
		}
	}
	return bases, nil
}

// Markers implements flush.WindowLedger.
func (l *Ledger) Markers(_ context.Context, n int) (map[string]shard.Marker, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	markers := map[string]shard.Marker{}
	for name, row := range l.rows {
		if name.shard == n && row.spread != 0 {
			markers[name.key] = row.spread
		}
	}
	return markers, nil
}

// Totals are what the ledger holds, by key.
func (l *Ledger) Totals() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	totals := map[string]int64{}
	for name, row := range l.rows {
		totals[name.key] += row.total
	}
	return totals
}

// LikeTotals are the parts of the totals that come from likes, by key.
func (l *Ledger) LikeTotals() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	totals := map[string]int64{}
	for name, row := range l.rows {
		if row.likes != 0 {
			totals[name.key] += row.likes
		}
	}
	return totals
}

// LikedPairs are the pairs that are liked.
func (l *Ledger) LikedPairs() map[counter.Pair]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	pairs := map[counter.Pair]bool{}
	for pair, state := range l.likes {
		if state.Liked {
			pairs[pair] = true
		}
	}
	return pairs
}
