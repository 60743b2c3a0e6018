package shard

import (
	"fmt"
	"testing"
	"time"
)

func TestHotDetector(t *testing.T) {
	t.Parallel()
	d := newHotDetector(100, nil)
	now := time.Now()
	d.begin(now)
	found := map[string]int{}
	add := func(key string, n, times int) {
		for range times {
			if d.add(key, n) {
				found[key]++
			}
		}
	}
	add("hot", 10, 30)
	if found["hot"] != 1 {
		t.Errorf("a key with 300 changes was found %d times, want once", found["hot"])
	}
	for i := range 20_000 { // some of which share the hot key's cell
		add(fmt.Sprint("cold/", i), 1, 1)
	}
	if len(found) != 1 {
		t.Errorf("%d keys are hot, want one", len(found))
	}
	if len(d.exact) > hotCandidates {
		t.Errorf("%d keys are counted one by one, at most %d may", len(d.exact), hotCandidates)
	}
	add("warm", 1, 99)
	d.begin(now.Add(time.Second))
	add("warm", 1, 99)
	if found["warm"] != 0 {
		t.Error("a key with 99 changes a second was found hot")
	}
	add("hot", 10, 30)
	if found["hot"] != 2 {
		t.Errorf("the hot key was found %d times in two seconds, want 2", found["hot"])
	}
	off := newHotDetector(0, nil)
	off.begin(now)
	if off.add("hot", 1_000_000) {
		t.Error("a detector without a threshold found a key")
	}
}

// Keys may have thresholds of their own.
func TestHotDetectorOfKeys(t *testing.T) {
	t.Parallel()
	d := newHotDetector(100, func(key string) (int, bool) {
		switch key {
		case "never":
			return 0, true
		case "soon":
			return 10, true
		case "late":
			return 1000, true
		}
		return 0, false
	})
	d.begin(time.Now())
	found := map[string]int{}
	for range 150 {
		for _, key := range []string{"never", "soon", "late", "usual"} {
			if d.add(key, 2) && found[key] == 0 {
				found[key] = 1
			}
		}
	}
	if len(found) != 2 || found["soon"] == 0 || found["usual"] == 0 {
		t.Errorf("found %v with 300 changes each", found)
	}
}
