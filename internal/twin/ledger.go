package twin

import (
	"context"
	"sync"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// Ledger is a flush.WindowLedger in memory. Each method is one atomic step, as a transaction is.
type Ledger struct {
	mu         sync.Mutex
	watermarks []shard.SealedWindow
	totals     map[ledgerRow]int64
	markers    map[ledgerRow]int64
}

type ledgerRow struct {
	key   string
	shard int
}

var _ flush.WindowLedger = (*Ledger)(nil)

// NewLedger makes an empty ledger.
func NewLedger(shards int) *Ledger {
	return &Ledger{
		watermarks: make([]shard.SealedWindow, shards), totals: map[ledgerRow]int64{}, markers: map[ledgerRow]int64{},
	}
}

// LockShard always succeeds: the protocol's correctness does not rest on the lock.
func (l *Ledger) LockShard(context.Context, int) (func(), bool, error) { return func() {}, true, nil }

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
	if w.ID <= previous {
		return flush.Applied{Previous: previous}, nil
	}
	applied := flush.Applied{OK: true, Previous: previous, Clipped: map[string]int64{}}
	for key, delta := range w.Deltas {
		row := ledgerRow{key, w.Shard}
		total := counter.AddSaturating(l.totals[row], delta)
		if clipped := total - l.totals[row]; clipped != delta {
			applied.Clipped[key] = clipped
		}
		l.totals[row] = total
	}
	for key, marker := range w.Markers {
		row := ledgerRow{key, w.Shard}
		l.totals[row] += 0 // the marker makes a row
		if l.markers[row] == 0 || marker < l.markers[row] {
			l.markers[row] = marker
		}
	}
	l.watermarks[w.Shard] = shard.SealedWindow{ID: w.ID, Token: w.Token}
	return applied, nil
}

// Bases implements shard.BaseLoader.
func (l *Ledger) Bases(_ context.Context, keys []string) (shard.LedgerBases, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var bases shard.LedgerBases
	for _, w := range l.watermarks {
		bases.Watermarks = append(bases.Watermarks, w.ID)
	}
	for _, key := range keys {
		for n := range l.watermarks {
			row := ledgerRow{key, n}
			if total, ok := l.totals[row]; ok {
				bases.Rows = append(bases.Rows, shard.LedgerRow{Key: key, Shard: n, Total: total, Spread: l.markers[row]})
			}
		}
	}
	return bases, nil
}

// Markers implements flush.WindowLedger.
func (l *Ledger) Markers(_ context.Context, n int) (map[string]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	markers := map[string]int64{}
	for row, marker := range l.markers {
		if row.shard == n {
			markers[row.key] = marker
		}
	}
	return markers, nil
}

// Totals are what the ledger holds, by key.
func (l *Ledger) Totals() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	totals := map[string]int64{}
	for row, total := range l.totals {
		totals[row.key] += total
	}
	return totals
}
