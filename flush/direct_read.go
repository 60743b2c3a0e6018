package flush

import (
	"context"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// pendingRead is a read on its way through the queue.
type pendingRead struct {
	keys     []string
	done     chan struct{} // closed when readings are set
	readings []counter.Reading
}

// Counts reads keys, in their order. Reads that wait for the one under way share the next: all that was
// acknowledged before the call is in its answer.
func (d *Direct) Counts(ctx context.Context, keys []string) []counter.Reading {
	if len(keys) == 0 {
		return nil
	}
	p := &pendingRead{keys: keys, done: make(chan struct{})}
	if err := d.reads.Add(p); err != nil {
		return failedReadings(keys, queueError(err))
	}
	if left := deadline.Wait(ctx, p.done); left != nil {
		return failedReadings(keys, left)
	}
	return p.readings
}

// readGroup answers a batch of reads with one read of all their keys.
func (d *Direct) readGroup(ctx context.Context, batch []*pendingRead) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	positions := make(map[string]int)
	var keys []string
	for _, p := range batch {
		for _, key := range p.keys {
			if _, ok := positions[key]; !ok {
				positions[key] = len(keys)
				keys = append(keys, key)
			}
		}
	}
	counts, err := d.ledger.Counts(ctx, keys)
	for _, p := range batch {
		if err != nil {
			p.readings = failedReadings(p.keys, err)
		} else {
			p.readings = make([]counter.Reading, len(p.keys))
			for i, key := range p.keys {
				p.readings[i].Count = counts[positions[key]]
			}
		}
		close(p.done)
	}
}

func failedReadings(keys []string, err error) []counter.Reading {
	readings := make([]counter.Reading, len(keys))
	for i, key := range keys {
		readings[i] = counter.Reading{Count: counter.Count{Key: key}, Err: err}
	}
	return readings
}
