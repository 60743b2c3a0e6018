package flush

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/shard"
)

type workerMetrics struct {
	lag       *prometheus.GaugeVec
	backlog   *prometheus.GaugeVec
	windows   prometheus.Counter
	keys      prometheus.Counter
	likes     prometheus.Counter
	corrected prometheus.Counter
	clipped   prometheus.Counter
	seconds   prometheus.Histogram
	discarded prometheus.Counter
	rollbacks prometheus.Counter
	errors    prometheus.Counter
	success   *prometheus.GaugeVec
	length    prometheus.Gauge
	steps     *prometheus.HistogramVec
}

// stepLock takes the lock of a shard. The other steps of a round are named where they are done.
const stepLock = "lock"

var stepNames = []string{
	stepLock, "watermark", "seal", "restore", "sweep", "hold", "scan", "markers", "apply", "begin", "move", "end", "discard",
}

func newWorkerMetrics(cfg WorkerConfig) *workerMetrics {
	m := &workerMetrics{
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_flush_lag_seconds", Help: "Age of the shard's oldest window that is due, as this worker last saw it.",
		}, []string{"shard"}),
		backlog: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_flush_backlog_windows", Help: "Windows of the shard, open and sealed, as this worker last saw it.",
		}, []string{"shard"}),
		windows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_windows_total", Help: "Windows applied to the ledger.",
		}),
		keys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_keys_total", Help: "Keys of the windows applied to the ledger.",
		}),
		likes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_likes_total", Help: "Likes and unlikes of the windows applied to the ledger.",
		}),
		corrected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_likes_corrected_total",
			Help: "Likes of which the window supposed otherwise than the ledger knew: after an outage of the ledger or a rollback of Redis.",
		}),
		clipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_clipped_total", Help: "Deltas cut short because the total stopped at the edge of int64.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plusone_flush_window_seconds", Help: "Time to take a window, or those of a backlog that are merged, through the ledger and out of Redis.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 16), // 1 ms to 33 s
		}),
		discarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_windows_discarded_total",
			Help: "Windows deleted because the ledger had them: after a crash of a worker, or a rollback of Redis.",
		}),
		rollbacks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_rollbacks_total", Help: "Rollbacks of Redis noticed, counted for each shard.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plusone_flush_errors_total", Help: "Rounds of a shard that failed and will be repeated.",
		}),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "plusone_flush_last_success_timestamp_seconds",
			Help: "When this worker last drained windows of the shard, or saw that none is due. It begins with the start of the worker.",
		}, []string{"shard"}),
		length: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "plusone_flush_window_length_seconds", Help: "The setting --window: how long changes gather before they are due.",
		}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "plusone_flush_step_seconds", Help: "Time of a step of a round, in Redis or in the ledger, also of one that failed.",
			Buckets: prometheus.ExponentialBuckets(250e-6, 4, 9), // 0.25 ms to 16 s
		}, []string{"step"}),
	}
	m.length.Set(cfg.Window.Seconds())
	for n := range cfg.Shards {
		m.elsewhere(n)
		m.progressed(n)
	}
	for _, name := range stepNames {
		m.steps.WithLabelValues(name)
	}
	cfg.Registerer.MustRegister(m.lag, m.backlog, m.windows, m.keys, m.likes, m.corrected, m.clipped, m.seconds, m.discarded, m.rollbacks, m.errors,
		m.success, m.length, m.steps)
	return m
}

// step is called at the end of a step.
func (m *workerMetrics) step(name string, began time.Time) {
	m.steps.WithLabelValues(name).Observe(time.Since(began).Seconds())
}

// progressed is called when windows were drained, and when none is due.
func (m *workerMetrics) progressed(n int) {
	m.success.WithLabelValues(strconv.Itoa(n)).SetToCurrentTime()
}

// elsewhere is called when another worker drains the shard. What this one saw last is then old, and the other one shows
// what there is.
func (m *workerMetrics) elsewhere(n int) {
	label := strconv.Itoa(n)
	m.lag.WithLabelValues(label).Set(0)
	m.backlog.WithLabelValues(label).Set(0)
}

func (m *workerMetrics) observe(n int, sealed shard.SealReply) {
	label := strconv.Itoa(n)
	lag := time.Duration(0)
	if len(sealed.Sealed) > 0 {
		lag = time.Duration(sealed.Time-sealed.Sealed[0].ID) * time.Millisecond
	}
	m.lag.WithLabelValues(label).Set(lag.Seconds())
	m.backlog.WithLabelValues(label).Set(float64(sealed.Windows))
}

func (m *workerMetrics) applied(windows []*scannedWindow, applied Applied, started time.Time) {
	m.windows.Add(float64(len(windows)))
	for _, w := range windows {
		m.keys.Add(float64(len(w.Deltas)))
		m.likes.Add(float64(len(w.Likes)))
	}
	m.corrected.Add(float64(applied.CorrectedLikes))
	m.clipped.Add(float64(applied.Clipped))
	m.seconds.Observe(time.Since(started).Seconds())
}
