package shard

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// spreadInterval is how often the markers that are known are confirmed; below markerTrust, so that
	// one failure does not end the trust.
	spreadInterval = 10 * time.Second
	// spreadQueue bounds the hot keys that wait to be marked. A key that finds no place is found hot again.
	spreadQueue = 1_024
	// confirmChunk is how many markers are confirmed by one read.
	confirmChunk = 1_000
)

// spreader marks hot keys as spread and keeps the markers that this server knows of confirmed (rule 9).
type spreader struct {
	scripts Scripts
	markers *markers
	shards  int
	widthOf func(key string) int
	metrics *Metrics
	log     *slog.Logger
	queue   chan string
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

func newSpreader(s *Store) *spreader {
	ctx, cancel := context.WithCancel(context.Background())
	p := &spreader{
		scripts: s.scripts, markers: s.markers, shards: s.cfg.Shards, widthOf: s.cfg.WidthOf, metrics: s.metrics,
		log: s.cfg.Logger, queue: make(chan string, spreadQueue), stop: cancel,
	}
	p.stopped.Go(func() { p.run(ctx) })
	return p
}

// add has a key marked. It does not wait.
func (p *spreader) add(key string) {
	select {
	case p.queue <- key:
	default:
	}
}

func (p *spreader) close() {
	p.stop()
	p.stopped.Wait()
}

func (p *spreader) run(ctx context.Context) {
	ticker := time.NewTicker(spreadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-p.queue:
			p.mark(ctx, key)
		case <-ticker.C:
			p.confirm(ctx)
		}
	}
}

// width is over how many shards a key is to be spread, 0 for all. A deployment has no more than it has.
func (p *spreader) width(key string) int {
	if p.widthOf == nil {
		return 0
	}
	if width := p.widthOf(key); width < p.shards {
		return width
	}
	return 0
}

// mark spreads a key. After a failure the key stays cold until it is found hot again. One that is not to leave its home
// is not marked: it is read and written as any other.
func (p *spreader) mark(ctx context.Context, key string) {
	width := p.width(key)
	if width == 1 || p.markers.get(key) != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeAttempt)
	defer cancel()
	sent := time.Now()
	marker, err := p.scripts.Spread(ctx, Home(key, p.shards), []string{key}, width)
	p.metrics.script(scriptSpread, sent, err)
	switch {
	case err != nil:
		p.log.WarnContext(ctx, "hot key not spread, will be tried again", "error", err)
	case len(marker) == 1 && marker[0] != 0:
		p.markers.learn(key, marker[0])
		p.metrics.spreadKeys.Set(float64(len(p.markers.keys())))
		p.log.DebugContext(ctx, "hot key spread", "home", Home(key, p.shards))
	default:
		p.metrics.spreadRefused.Inc()
	}
}

// confirm asks the homes of known markers whether they stand. If that fails, they are no longer relied on after
// markerTrust.
func (p *spreader) confirm(ctx context.Context) {
	byHome := make(map[int][]string)
	for _, key := range p.markers.keys() {
		home := Home(key, p.shards)
		byHome[home] = append(byHome[home], key)
	}
	for home, keys := range byHome {
		for len(keys) > 0 {
			chunk := keys[:min(confirmChunk, len(keys))]
			keys = keys[len(chunk):]
			attempt, cancel := context.WithTimeout(ctx, readAttempt)
			replies, err := p.scripts.Read(attempt, []KeyGroup{{Shard: home, Keys: chunk}})
			cancel()
			if err != nil {
				p.log.WarnContext(ctx, "markers of spread keys not confirmed", "shard", home, "error", err)
				break
			}
			for i, key := range chunk {
				p.markers.learn(key, replies[0].Values[i].Marker)
			}
		}
	}
	p.metrics.spreadKeys.Set(float64(len(p.markers.keys())))
}
