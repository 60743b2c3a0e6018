package flush

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestGatherEnds(t *testing.T) {
	t.Parallel()
	idle := &Direct{}
	idle.gather(time.Hour) // nothing comes

	busy := &Direct{}
	var stopped atomic.Bool
	var callers sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		callers.Go(func() {
			for !stopped.Load() {
				busy.added.Add(1)
				runtime.Gosched()
			}
		})
	}
	busy.gather(20 * time.Millisecond) // though changes never cease to come
	stopped.Store(true)
	callers.Wait()
}
