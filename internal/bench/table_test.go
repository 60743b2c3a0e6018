package bench_test

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// comparison is a row of the table.
type comparison struct {
	work, against string
	subject, yard side
	// lead is how long the subject's load goes on before all runs, at a scale of 1.
	lead time.Duration
	// perStore compares CPU time of the store too.
	perStore bool
	target   string
}

// row is what came of it.
type row struct {
	work, against, target string
	throughput            string // of the subject, in operations a second
	cost                  string // CPU time of an operation of the subject
	ratios                string
	latency               string
}

// table is printed at the end.
var table rows

type rows struct {
	mu   sync.Mutex
	rows []row
}

func (r *rows) add(next row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, next)
}

func (r *rows) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return
	}
	fmt.Printf("\n%s, %d CPUs, %s, %d paired runs of %v each; median (lowest to highest)\n\n", cpuModel(), runtime.NumCPU(), runtime.Version(), *runsFlag, *secondsFlag)
	fmt.Printf("| work | against | a second | CPU of server, of store | ratios | p50 / p99, beside the yardstick's | target |\n|---|---|---|---|---|---|---|\n")
	for _, w := range r.rows {
		fmt.Printf("| %s | %s | %s | %s | %s | %s | %s |\n", w.work, w.against, w.throughput, w.cost, w.ratios, w.latency, w.target)
	}
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // "" where there is none
	for line := range strings.Lines(string(info)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return runtime.GOARCH
}

// measure is a subtest, so that -run can choose it.
func (c comparison) measure(t *testing.T) {
	t.Helper()
	t.Run(c.work, c.run)
}

// run runs the two sides in turn, each as often first as second.
func (c comparison) run(t *testing.T) {
	var subjects, yards []sample
	if c.lead > 0 {
		c.subject.runFor(t, c.lead/time.Duration(*scaleFlag))
	}
	for run := range *runsFlag {
		if run%2 == 0 {
			subjects = append(subjects, c.subject.run(t))
			yards = append(yards, c.yard.run(t))
		} else {
			yards = append(yards, c.yard.run(t))
			subjects = append(subjects, c.subject.run(t))
		}
	}
	ratio := func(of func(sample) float64) string {
		var all []float64
		for i := range subjects {
			all = append(all, of(subjects[i])/of(yards[i]))
		}
		return spread(all, "%.2f")
	}
	ratios := "throughput " + ratio(func(s sample) float64 { return s.perSecond }) +
		"; server CPU " + ratio(func(s sample) float64 { return float64(s.server) })
	if c.perStore {
		ratios += "; store CPU " + ratio(func(s sample) float64 { return float64(s.store) })
	}
	table.add(row{
		work: c.work, against: c.against, target: c.target, ratios: ratios,
		throughput: spread(each(subjects, func(s sample) float64 { return s.perSecond }), "%.0f"),
		cost:       cost(subjects),
		latency:    latencies(subjects) + ", " + latencies(yards),
	})
}

func each(samples []sample, of func(sample) float64) []float64 {
	all := make([]float64, len(samples))
	for i, s := range samples {
		all[i] = of(s)
	}
	return all
}

func cost(samples []sample) string {
	micros := func(of func(sample) time.Duration) string {
		return fmt.Sprintf("%.2f µs", median(each(samples, func(s sample) float64 { return float64(of(s)) / 1e3 })))
	}
	text := micros(func(s sample) time.Duration { return s.server })
	if samples[0].store > 0 {
		text += ", " + micros(func(s sample) time.Duration { return s.store })
	}
	return text
}

func latencies(samples []sample) string {
	p50 := median(each(samples, func(s sample) float64 { return float64(s.p50) }))
	p99 := median(each(samples, func(s sample) float64 { return float64(s.p99) }))
	return fmt.Sprintf("%v / %v", time.Duration(p50).Round(10*time.Microsecond), time.Duration(p99).Round(10*time.Microsecond))
}

func median(all []float64) float64 {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, cmp.Compare)
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

// spread is the median of some numbers, and their range.
func spread(all []float64, format string) string {
	if len(all) == 1 {
		return fmt.Sprintf(format, all[0])
	}
	return fmt.Sprintf(format+" ("+format+" to "+format+")", median(all), slices.Min(all), slices.Max(all))
}
