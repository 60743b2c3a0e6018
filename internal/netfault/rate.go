package netfault

import (
	"sync"
	"time"
)

// turnsPerSecond is into how many turns a second of the line is divided among connections.
const turnsPerSecond = 50

// rate is what a line carries.
type rate struct {
	bytesPerSecond int

	mu   sync.Mutex
	free time.Time // when the line has carried all that was reserved
}

func newRates(bytesPerSecond int) [2]*rate {
	if bytesPerSecond <= 0 {
		return [2]*rate{}
	}
	return [2]*rate{{bytesPerSecond: bytesPerSecond}, {bytesPerSecond: bytesPerSecond}}
}

// reserve takes a turn for some of so many bytes, and returns for how many and when the line has carried them.
func (r *rate) reserve(bytes int) (int, time.Time) {
	n := min(bytes, max(1, r.bytesPerSecond/turnsPerSecond))
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(n) * time.Second / time.Duration(r.bytesPerSecond))
	return n, r.free
}
