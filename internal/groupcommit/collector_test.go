package groupcommit_test

import (
	"maps"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/groupcommit"
)

// The lanes of a kind wait together, and the fullest is the one that refuses first.
func TestCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, registry := groupcommit.NewCollector("store", "reads", "writes"), prometheus.NewPedanticRegistry()
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
		want := map[string]float64{
			"store_queue_requests reads": 0, "store_queue_fill_ratio reads": 0, "store_queue_refused_total reads": 0,
			"store_queue_requests writes": 0, "store_queue_fill_ratio writes": 0, "store_queue_refused_total writes": 0,
		}
		compare := func() {
			t.Helper()
			if got := gather(t, registry); !maps.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		compare()
		r := &recorder{gate: make(chan struct{})}
		lanes := make([]*groupcommit.Queue[int], 2)
		for i := range lanes {
			lanes[i] = groupcommit.New(groupcommit.Config[int]{MaxQueue: 4 >> i, MaxBatch: 1}, r.run)
			add(t, lanes[i], 1)
		}
		synctest.Wait() // both have a batch under way
		add(t, lanes[0], 2)
		add(t, lanes[1], 3, 4)
		if err := lanes[1].Add(5); err == nil {
			t.Error("a full lane took more")
		}
		c.Show(groupcommit.Queues{"writes": {lanes[0], lanes[1]}})
		want["store_queue_requests writes"], want["store_queue_fill_ratio writes"], want["store_queue_refused_total writes"] = 3, 1, 1
		compare()
		for range 5 { // one batch after the other, as both lanes write down what they ran
			r.gate <- struct{}{}
			synctest.Wait()
		}
		for _, lane := range lanes {
			mustClose(t, lane)
		}
	})
}

// gather returns the metrics by name and label.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}
