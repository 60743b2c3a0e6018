package deny

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"
)

const (
	// MaxRedisActors is how many actors a set in Redis may have: reading it takes Redis some 10 ms each time.
	MaxRedisActors = 100_000
	// DefaultInterval is how often the set is read.
	DefaultInterval = 5 * time.Second
	// scanCount is how many actors one command reads, in a tenth of a millisecond.
	scanCount = 1_000
	// readTimeout bounds one reading of the set.
	readTimeout = 2 * time.Second
)

// Metrics of a RedisSet.
type Metrics struct {
	failing, success, size prometheus.Gauge
	errors                 prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &Metrics{
		failing: gauge("plusone_deny_redis_failing", "1 while the set of denied actors in Redis cannot be read, and an older one is in force."),
		success: gauge("plusone_deny_redis_last_success_timestamp_seconds", "When the set of denied actors in Redis was last read."),
		size:    gauge("plusone_deny_redis_actors", "Actors in the set of denied actors in Redis."),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_deny_redis_errors_total", Help: "Readings of the set of denied actors in Redis that failed.",
		}),
	}
	reg.MustRegister(m.failing, m.success, m.size, m.errors)
	return m
}

// RedisConfig configures a RedisSet. Key and Metrics are needed.
type RedisConfig struct {
	// Key of the set.
	Key string
	// Interval between two readings. The default is DefaultInterval.
	Interval time.Duration
	Metrics  *Metrics
	Logger   *slog.Logger
}

// RedisSet is a set in Redis as it was last read. While it cannot be read, that stays in force. Its methods may be called
// concurrently.
type RedisSet struct {
	client rueidis.Client
	cfg    RedisConfig
	actors atomic.Pointer[Actors]
	cancel context.CancelFunc
	done   chan struct{}
}

// OpenRedis reads the set, and follows it until Close. It fails if the set cannot be read now. A key that is not there is a
// set without actors.
func OpenRedis(ctx context.Context, client rueidis.Client, cfg RedisConfig) (*RedisSet, error) {
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &RedisSet{client: client, cfg: cfg, done: make(chan struct{})}
	if err := s.Reload(ctx); err != nil {
		return nil, fmt.Errorf("denied actors in Redis: %w", err)
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go s.follow(ctx)
	return s, nil
}

// Denied reports whether an actor is in the set.
func (s *RedisSet) Denied(actor string) bool { return s.actors.Load().Denied(actor) }

// Close ends the following.
func (s *RedisSet) Close() {
	s.cancel()
	<-s.done
}

func (s *RedisSet) follow(ctx context.Context) {
	defer close(s.done)
	ticker := time.NewTicker(s.cfg.Interval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := s.Reload(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.cfg.Logger.Error("the denied actors in Redis cannot be read, those known stay in force", "error", err)
		case err == nil && failing:
			s.cfg.Logger.Info("the denied actors in Redis are read again")
		}
		failing = err != nil
	}
}

// Reload reads the set at once. An error means that the set that was read before stays in force.
func (s *RedisSet) Reload(ctx context.Context) error {
	actors, err := s.read(ctx)
	if err != nil {
		s.cfg.Metrics.errors.Inc()
		s.cfg.Metrics.failing.Set(1)
		return err
	}
	s.actors.Store(&actors)
	s.cfg.Metrics.size.Set(float64(len(actors)))
	s.cfg.Metrics.success.SetToCurrentTime()
	s.cfg.Metrics.failing.Set(0)
	return nil
}

var errTooMany = errors.New("the set has too many actors")

// read reads the set. An actor that is added or removed meanwhile may be in it or not.
func (s *RedisSet) read(ctx context.Context) (Actors, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	actors := make(Actors)
	for cursor := uint64(0); ; {
		page, err := s.client.Do(ctx, s.client.B().Sscan().Key(s.cfg.Key).Cursor(cursor).Count(scanCount).Build()).AsScanEntry()
		if err != nil {
			return nil, err
		}
		for _, actor := range page.Elements {
			actors[actor] = struct{}{}
		}
		if len(actors) > MaxRedisActors {
			return nil, fmt.Errorf("%w: more than %d", errTooMany, MaxRedisActors)
		}
		if cursor = page.Cursor; cursor == 0 {
			return actors, nil
		}
	}
}
