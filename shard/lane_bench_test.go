package shard

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/counter"
)

// instant is a Redis that applies each batch at once.
type instant struct {
	Scripts
	encoder writeEncoder
}

func (i *instant) Write(_ context.Context, b *WriteBatch) (WriteReply, error) {
	i.encoder.encode(b, [5]int64{})
	likes := 0
	for _, s := range b.Shards {
		likes += len(s.Likes)
	}
	return WriteReply{Micros: time.Now().UnixMicro(), Likes: slices.Repeat([]LikeResult{LikeChanged}, likes)}, nil
}

// BenchmarkLane reports what a change takes from its routing to its answer, without the wait: its way to the lane, into a
// batch, to the arguments of the script and back.
func BenchmarkLane(b *testing.B) {
	const shards, keys, calls = 8, 1000, 128
	entries := make([]counter.Entry, keys)
	for i := range entries {
		entries[i] = counter.Entry{Key: fmt.Sprintf("views/post:%07d", i), Delta: 1}
	}
	for _, bench := range []struct {
		name    string
		entries int
		like    counter.LikeAction
		withID  bool
	}{
		{"increment", 1, counter.NoLike, false},
		{"increment-id", 1, counter.NoLike, true},
		{"like-id", 1, counter.SetLiked, true},
		{"batch-id", 1000, counter.NoLike, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := New(&instant{}, nil, Config{
				Shards: shards, Dedupe: time.Minute, HotThreshold: 1 << 30, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.Default(),
			})
			b.Cleanup(func() {
				if err := s.Close(context.Background()); err != nil {
					b.Error(err)
				}
			})
			changes := make([]counter.Change, max(8, calls/bench.entries))
			for i := range changes {
				at := i * 31 % (keys - bench.entries + 1)
				changes[i] = counter.Change{Entries: entries[at:][:bench.entries:bench.entries], Like: bench.like}
				if bench.like != counter.NoLike {
					changes[i].Entries, changes[i].Actor = []counter.Entry{{Key: "likes"}}, fmt.Sprint("user:", i)
				}
				if bench.withID {
					changes[i].RequestID = counter.ParseRequestID(uuid.Must(uuid.NewV7()).String())
				}
			}
			var all []*job
			b.ReportAllocs()
			for b.Loop() {
				all = all[:0]
				for i := range changes {
					c := changes[i]
					all = s.jobs(all, &c, c.Entries, fingerprintOf(&c, &s.cfg.FingerprintKey))
				}
				s.writers[0].run(b.Context(), all)
				for _, j := range all {
					var total tally
					total.fail(j.done.Wait(b.Context()))
					if total.add(j); total.err != nil || !j.settled() {
						b.Fatal(total.err, j.parts)
					}
					s.pool.put(j)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)*bench.entries), "ns/change")
		})
	}
}
