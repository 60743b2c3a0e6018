package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/redistest"
)

// The script, which takes all tokens at once where it can, decides as one request after the other would.
func TestBatchIsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRedis(t, false, redistest.Start(t).Addr)
	const buckets, runs = 12, 300
	wants := make([]Want, buckets)   // at rates at which hardly anything comes while the test lasts
	full := make([]float64, buckets) // when they will be, in nanoseconds
	rates := []string{"30/5h", "7/1h", "7/1h burst 40", "100/24h"}
	b := newBatch(r)
	together := 0
	for run := range runs {
		if run%60 == 0 { // with full buckets
			clear(full)
			for i := range wants {
				wants[i] = Want{Kind: Actor, Who: fmt.Sprint(run, ":", i), Rate: rate(t, rates[i%len(rates)])}
			}
		}
		requests := make([]*request, 1+random.IntN(8))
		expected := make([]Verdict, len(requests))
		waits := make([][]time.Duration, len(requests)) // of the buckets
		refused := false
		for n := range requests {
			q := &request{}
			expected[n] = Verdict{Allowed: true}
			chosen := random.Perm(buckets)[:1+random.IntN(3)]
			for i, k := range chosen {
				w := wants[k]
				if w.Cost = 1 + random.Int64N(3); random.IntN(50) == 0 {
					w.Cost = w.Rate.Burst + 3
				}
				q.wants, q.keys = append(q.wants, w), append(q.keys, r.keyOf(&w))
				wait := time.Duration(full[k] + w.Rate.tokens(w.needed()) - w.Rate.tokens(w.Rate.Burst))
				if wait < time.Microsecond { // an error of rounding
					wait = 0
				}
				if waits[n] = append(waits[n], wait); wait > expected[n].Wait {
					expected[n] = Verdict{Lacking: i, Wait: wait}
				}
			}
			for i, k := range chosen {
				if expected[n].Allowed {
					full[k] += q.wants[i].Rate.tokens(q.wants[i].Cost)
				}
			}
			refused = refused || !expected[n].Allowed
			requests[n] = q
		}
		if !refused {
			together++
		}
		b.settle(t.Context(), requests)
		for n, q := range requests {
			passed := expected[n].Wait - q.verdict.Wait // since the buckets were full
			if q.err != nil || q.verdict.Allowed != expected[n].Allowed || passed < -time.Millisecond || passed > time.Minute ||
				waits[n][q.verdict.Lacking] < expected[n].Wait-time.Millisecond { // two may lack for as long
				t.Fatalf("seed %d, run %d, request %d: %+v, %v, want %+v", seed, run, n, q.verdict, q.err, expected[n])
			}
		}
	}
	if together == 0 || together == runs {
		t.Errorf("seed %d: in %d of %d scripts there was enough for all", seed, together, runs)
	}
}

// A request may have more buckets than one command of the script.
func TestManyBuckets(t *testing.T) {
	t.Parallel()
	r := newRedis(t, false, redistest.Start(t).Addr)
	wants := make([]Want, 2*maxBatchBuckets+500)
	for i := range wants {
		wants[i] = Want{Kind: Actor, Who: fmt.Sprint(i), Rate: rate(t, "1/1h"), Cost: 1}
	}
	wants[len(wants)-1].Rate = rate(t, "2/1h")
	last := len(wants) - 2
	take(t, r, wants[last])
	if v := take(t, r, wants...); v.Allowed || v.Lacking != last {
		t.Fatalf("one of them is empty: %+v", v)
	}
	wants[last].Who = "another"
	if v := take(t, r, wants...); !v.Allowed {
		t.Fatalf("all are full: %+v", v)
	}
	for i, allowed := range map[int]bool{0: false, maxBatchBuckets: false, len(wants) - 1: true} {
		if v := take(t, r, wants[i]); v.Allowed != allowed {
			t.Errorf("bucket %d after that: %+v", i, v)
		}
	}
}
