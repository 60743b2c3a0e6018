package chaos_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/plusone-dev/plusone/internal/history"
)

// table is what was done and seen, by deployment, printed at the end of the run.
var table results

type results struct {
	mu   sync.Mutex
	rows map[string]*result
}

type result struct {
	faults map[string]int
	stats  history.Stats
	doubts int
}

func (r *results) add(deployment string, got result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil {
		r.rows = make(map[string]*result)
	}
	row := r.rows[deployment]
	if row == nil {
		r.rows[deployment] = &got
		return
	}
	for name, n := range got.faults {
		row.faults[name] += n
	}
	row.stats.Add(got.stats)
	row.doubts += got.doubts
}

func (r *results) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return
	}
	var all history.Stats
	total := map[string]int{}
	faults := 0
	fmt.Printf("\n| deployment | faults | changes acknowledged | values read and checked | in doubt for a time | repeats | left in doubt | without an id, left in doubt | promises broken |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(r.rows)) {
		row := r.rows[name]
		n := 0
		for fault, count := range row.faults {
			total[fault] += count
			n += count
		}
		faults += n
		all.Add(row.stats)
		fmt.Printf("| %s | %d | %d | %d | %d | %d | %d | %d | %d |\n", name, n, row.stats.Changes, row.stats.Reads,
			row.stats.Doubts, row.stats.Repeats, row.doubts, row.stats.Unsettled, row.stats.Violations)
	}
	fmt.Printf("| all | %d | %d | %d | %d | %d | | %d | %d |\n\n", faults, all.Changes, all.Reads, all.Doubts, all.Repeats, all.Unsettled, all.Violations)
	fmt.Printf("%d faults, %d operations checked, %d promises broken, seed %d\n\n| fault | times |\n|---|---|\n", faults, all.Checked(), all.Violations, *seedFlag)
	for _, name := range slices.SortedFunc(maps.Keys(total), strings.Compare) {
		fmt.Printf("| %s | %d |\n", name, total[name])
	}
}
