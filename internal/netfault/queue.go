package netfault

import (
	"sync"
	"time"
)

const (
	// maxQueued bounds the bytes under way in one direction: 200 ms at 20 MB/s.
	maxQueued = 4 << 20
	// maxThrottled bounds them where a rate is the limit. It is small, so that the sender soon notices.
	maxThrottled = 64 << 10
	// tick is the resolution of delays: bytes that come within it travel together.
	tick = time.Millisecond
)

// queue holds what is under way in one direction of a connection, in order. A healthy connection does not use
// it.
type queue struct {
	flow *flow

	mu     sync.Mutex
	chunks []chunk
	bytes  int  // in chunks
	busy   bool // a goroutine passes chunks on
	ended  bool // finish was called
	// room is signalled when bytes have left the queue.
	room chan struct{}
}

// chunk is what was read at about the same time, or the end of the direction.
type chunk struct {
	arrived time.Time
	data    []byte
	end     bool
}

func newQueue(f *flow) *queue { return &queue{flow: f, room: make(chan struct{}, 1)} }

// idle reports whether nothing is under way, so that who alone puts data may also pass it on directly.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.busy
}

// finished reports whether the direction takes nothing more.
func (q *queue) finished() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ended
}

// put copies data into the queue once there is room. It is for one caller at a time.
func (q *queue) put(data []byte) {
	for !q.fits(len(data)) {
		select {
		case <-q.room:
		case <-q.flow.conn.over:
			return
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.bytes += len(data)
	now := time.Now()
	if last := len(q.chunks) - 1; last >= 0 && now.Sub(q.chunks[last].arrived) < tick {
		q.chunks[last].data = append(q.chunks[last].data, data...)
		return
	}
	q.send(chunk{arrived: now, data: append([]byte(nil), data...)})
}

// fits reports whether there is room, or nobody will ask for it any more.
func (q *queue) fits(n int) bool {
	limit := maxQueued
	if q.flow.conn.proxy.settings.Load().rates[q.flow.direction] != nil {
		limit = maxThrottled
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ended || len(q.chunks) == 0 || q.bytes+n <= limit
}

// finish ends the direction after what is under way. It may be called repeatedly and concurrently.
func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.ended = true
	q.send(chunk{arrived: time.Now(), end: true})
}

// send adds a chunk and sees to it that it is passed on. The caller holds mu.
func (q *queue) send(c chunk) {
	q.chunks = append(q.chunks, c)
	if !q.busy {
		q.busy = true
		q.flow.conn.proxy.group.Go(q.run)
	}
}

// run passes chunks on, each when its time has come, until there are none.
func (q *queue) run() {
	for {
		q.mu.Lock()
		if len(q.chunks) == 0 {
			q.chunks, q.busy = nil, false
			q.mu.Unlock()
			return
		}
		arrived := q.chunks[0].arrived
		q.mu.Unlock()
		if !q.delay(arrived) {
			return
		}
		q.mu.Lock()
		c := q.chunks[0]
		q.chunks = q.chunks[1:]
		q.bytes -= len(c.data)
		q.mu.Unlock()
		select {
		case q.room <- struct{}{}:
		default:
		}
		if !q.pass(c) {
			return
		}
	}
}

// delay waits until what arrived then has travelled for long enough. It is false if the connection is over.
func (q *queue) delay(arrived time.Time) bool {
	for {
		s := q.flow.conn.proxy.settings.Load()
		left := time.Until(arrived.Add(s.latency))
		if left <= 0 {
			return true
		}
		if !q.flow.conn.wait(left, s) {
			return false
		}
	}
}

// pass writes a chunk no faster than the rate allows. It is false if the connection is over.
func (q *queue) pass(c chunk) bool {
	if c.end {
		q.flow.writeEnd()
		return true
	}
	for data := c.data; len(data) > 0; {
		n, ok := q.pace(len(data))
		if !ok {
			return false
		}
		q.flow.write(data[:n])
		data = data[n:]
	}
	return true
}

// pace waits for its turn on the line, and returns how many of so many bytes it is for. It is false if the
// connection is over.
func (q *queue) pace(bytes int) (int, bool) {
	line := func(s *settings) *rate { return s.rates[q.flow.direction] }
	s := q.flow.conn.proxy.settings.Load()
	limit := line(s)
	if limit == nil {
		return bytes, true
	}
	n, due := limit.reserve(bytes)
	for left := time.Until(due); left > 0 && line(s) == limit; left = time.Until(due) {
		if !q.flow.conn.wait(left, s) {
			return 0, false
		}
		s = q.flow.conn.proxy.settings.Load()
	}
	return n, true
}
