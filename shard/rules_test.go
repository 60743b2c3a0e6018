package shard_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/twin"
	"github.com/plusone-dev/plusone/shard"
)

// TestRules are stories of which each needs a rule of the protocol that chance finds too seldom.
func TestRules(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(testing.TB) *fixture{"redis": openRedis, "twin": openTwin} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			for name, run := range ruleCases {
				t.Run(name, func(t *testing.T) {
					f.flushAll(t)
					clear(f.tokens)
					f.set(t, epochMS)
					run(t, f)
				})
			}
		})
	}
}

var ruleCases = map[string]func(t *testing.T, f *fixture){
	// Redis goes back to when a window was open that the ledger has; a worker discards it, and the clock of the new
	// host is behind. What is written now must not have the name of that window.
	"new window after a discard": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		restore := f.snapshot(t)
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "g", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		applied := f.sealed(0, epochMS)
		restore(t)
		f.set(t, epochMS-1)
		f.discard(t, 0, epochMS, "g1")
		f.add(t, 0, entry("a", 5))
		_, err := f.Seal(t.Context(), 0, applied, "g2")
		must(t, err)
		f.pending(t, 0, "a", 5)
	},

	// Redis goes back to when the window held less, and another worker seals that copy before the one that applied the
	// whole window begins to finish it. A base that is loaded meanwhile must fit what is moved.
	"older copy sealed again": func(t *testing.T, f *fixture) {
		f.add(t, 0, entry("a", 1))
		restore := f.snapshot(t)
		f.add(t, 0, entry("a", 2))
		f.advance(t, windowMS)
		f.seal(t, 0, 0, "first", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		applied := f.sealed(0, epochMS)
		restore(t)
		f.seal(t, 0, 0, "second", sealReply{Windows: 1, Sealed: []int64{epochMS}})
		rolledBack, err := f.Begin(t.Context(), 0, applied, 0, "g1")
		must(t, err)
		f.load(t, 0, epochMS, shard.Base{Key: "a", Total: 3})
		f.move(t, 0, epochMS, entry("a", 3))
		f.end(t, 0, epochMS)
		f.cached(t, 0, "a", 3)
		equal(t, "rollback noticed", rolledBack, true)
	},
}

// TestRollbackIsHealed: the worker notices that Redis lost everything, says so, and puts back the markers, which had
// reached the ledger through a window.
func TestRollbackIsHealed(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) modelRedis{
		"redis": func(t *testing.T) modelRedis { return newRealRedis(t, newClient(t, redistest.Start(t))) },
		"twin":  func(*testing.T) modelRedis { return newTwinRedis() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis, metrics, log := open(t), prometheus.NewRegistry(), &bytes.Buffer{}
			scripts := redis.Scripts()
			worker := flush.NewWorker(scripts, twin.NewLedger(1), flush.WorkerConfig{
				Shards: 1, Interval: time.Hour, Concurrency: 1, StepTimeout: time.Minute,
				Registerer: metrics, Logger: slog.New(slog.NewTextHandler(log, nil)),
			})
			want, err := scripts.Spread(t.Context(), 0, []string{"hot"}, 0)
			must(t, err)
			redis.Advance(modelWindow)
			must(t, worker.Round(t.Context(), 0))
			equal(t, "log", log.String(), "")
			redis.FlushAll()
			must(t, worker.Round(t.Context(), 0))
			replies, err := scripts.Read(t.Context(), []shard.KeyGroup{{Shard: 0, Keys: []string{"hot"}}})
			must(t, err)
			equal(t, "marker", replies[0].Values[0].Marker, want[0])
			if !strings.Contains(log.String(), "redis went back in time") {
				t.Errorf("log: %q", log)
			}
			families, err := metrics.Gather()
			must(t, err)
			noticed := 0.0
			for _, f := range families {
				if f.GetName() == "plusone_flush_rollbacks_total" {
					noticed = f.GetMetric()[0].GetCounter().GetValue()
				}
			}
			equal(t, "rollbacks", noticed, 1)
		})
	}
}

// TestRowsAwayFromHomeImplyMarker: a key whose marker was lost before it reached the ledger is summed over all shards
// that the ledger has of it.
func TestRowsAwayFromHomeImplyMarker(t *testing.T) {
	t.Parallel()
	trips, store := newTrips(t)
	apply := func(n int, deltas map[string]int64) {
		_, err := trips.ledger.Apply(t.Context(), flush.Window{Shard: n, ID: 1, WindowPart: shard.WindowPart{Deltas: deltas}})
		must(t, err)
	}
	both, away := "both", "away"
	apply((shard.Home(both, 8)+1)%8, map[string]int64{both: 4})
	apply(shard.Home(both, 8), map[string]int64{both: 3})
	apply((shard.Home(away, 8)+3)%8, map[string]int64{away: 5})
	equal(t, "at home and away", value(t, store, both), 7)
	equal(t, "away alone", value(t, store, away), 5)
}
