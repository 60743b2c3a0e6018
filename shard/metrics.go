package shard

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// Metrics of the sharded store.
type Metrics struct {
	scriptSeconds *prometheus.HistogramVec
	scriptErrors  *prometheus.CounterVec
	batchChanges  prometheus.Histogram
	refusals      prometheus.Counter
	retries       prometheus.Counter
	loadSeconds   prometheus.Histogram
	loadKeys      prometheus.Counter
	loadErrors    prometheus.Counter
	likeSeconds   prometheus.Histogram
	likeLoads     prometheus.Counter
	likeErrors    prometheus.Counter
	supposedLikes prometheus.Counter
	// rememberedLikes are those of which likers have answered for the ledger.
	rememberedLikes prometheus.Counter
	spreadKeys      prometheus.Gauge
	spreadRefused   prometheus.Counter
	queues          *groupcommit.Collector
}

// The scripts that the store runs; the worker's are steps of its own.
const (
	scriptWrite  = "write"
	scriptRead   = "read"
	scriptLikes  = "likes"
	scriptHomes  = "homes"
	scriptLoad   = "load"
	scriptSpread = "spread"
)

// The kinds of queues.
const (
	queueWrites = "writes"
	queueReads  = "reads"
	queueBases  = "bases"
	queueLikes  = "likes"
)

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	seconds := prometheus.ExponentialBuckets(50e-6, 2, 16) // 50 µs to 1.6 s
	m := &Metrics{
		scriptSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "plusone_redis_script_seconds", Help: "Time from sending a script to its answer.", Buckets: seconds,
		}, []string{"script"}),
		scriptErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plusone_redis_script_errors_total", Help: "Scripts that failed or whose answer was lost.",
		}, []string{"script"}),
		batchChanges: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_shard_batch_changes", Help: "Changes combined into one write script.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 14),
		}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_batch_refusals_total",
			Help: "Write scripts that changed nothing because of a repeated or old id, an overflow or a moved key; the rest is sent again.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_batch_retries_total", Help: "Write scripts sent again after a failure.",
		}),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_shard_load_seconds", Help: "Time to load missing bases from the ledger.", Buckets: seconds,
		}),
		loadKeys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_load_keys_total", Help: "Bases loaded from the ledger.",
		}),
		loadErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_load_errors_total", Help: "Loads from the ledger that failed.",
		}),
		likeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_shard_like_load_seconds", Help: "Time to ask the ledger what likes are that Redis does not know.", Buckets: seconds,
		}),
		likeLoads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_like_loads_total", Help: "Likes that the ledger was asked for.",
		}),
		likeErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_like_load_errors_total", Help: "Questions to the ledger what likes are that failed.",
		}),
		supposedLikes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_likes_provisional_total",
			Help: "Likes and unlikes taken without knowing what they were before, because the ledger cannot be asked.",
		}),
		rememberedLikes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_likes_remembered_total",
			Help: "Likes that the ledger was not asked for, since the server remembers who it has of a key that many like.",
		}),
		spreadKeys: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "plusone_shard_spread_keys", Help: "Hot keys that this server knows to be spread over all shards.",
		}),
		spreadRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_shard_spread_refused_total", Help: "Hot keys not spread because the limit of spread keys is reached.",
		}),
		queues: groupcommit.NewCollector("plusone_shard", queueWrites, queueReads, queueBases, queueLikes),
	}
	for _, name := range []string{scriptWrite, scriptRead, scriptLikes, scriptHomes, scriptLoad, scriptSpread} {
		m.scriptSeconds.WithLabelValues(name)
		m.scriptErrors.WithLabelValues(name)
	}
	reg.MustRegister(m.scriptSeconds, m.scriptErrors, m.batchChanges, m.refusals, m.retries, m.loadSeconds, m.loadKeys,
		m.loadErrors, m.likeSeconds, m.likeLoads, m.likeErrors, m.supposedLikes, m.rememberedLikes, m.spreadKeys, m.spreadRefused, m.queues)
	return m
}

func (m *Metrics) script(name string, sent time.Time, err error) {
	m.scriptSeconds.WithLabelValues(name).Observe(time.Since(sent).Seconds())
	if err != nil {
		m.scriptErrors.WithLabelValues(name).Inc()
	}
}

func (m *Metrics) load(started time.Time, keys int, err error) {
	m.loadSeconds.Observe(time.Since(started).Seconds())
	m.loadKeys.Add(float64(keys))
	if err != nil {
		m.loadErrors.Inc()
	}
}

func (m *Metrics) loadLikes(started time.Time, likes int, err error) {
	m.likeSeconds.Observe(time.Since(started).Seconds())
	m.likeLoads.Add(float64(likes))
	if err != nil {
		m.likeErrors.Inc()
	}
}
