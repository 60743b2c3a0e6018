package history

import (
	"errors"
	"io"
	"sync"
	"time"
)

// Recorder puts the events of many clients in one order, has a Checker follow them, and writes them to a file that
// Replay can read. It is safe for concurrent use.
type Recorder struct {
	mu      sync.Mutex
	began   time.Time
	checker *Checker
	file    *writer // nil if there is none
	lastOp  uint64
}

// NewRecorder begins a history. Events are written to file unless it is nil; Close must be called then.
func NewRecorder(cfg Config, file io.Writer) *Recorder {
	r := &Recorder{began: time.Now(), checker: NewChecker(cfg)}
	if file != nil {
		r.file = newWriter(file, cfg)
	}
	return r
}

// Record notes an event that happens now. One that begins a call gets its Op here, which is returned.
func (r *Recorder) Record(e Event) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.At = time.Since(r.began)
	if e.Op == 0 {
		r.lastOp++
		e.Op = r.lastOp
	}
	r.checker.Apply(&e)
	if r.file != nil {
		r.file.write(&e)
	}
	return e.Op
}

// Violations are the first broken promises so far.
func (r *Recorder) Violations() []Violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checker.Violations()
}

// Stats are the numbers so far.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checker.Stats()
}

// InDoubt is how many changes are in doubt or under way.
func (r *Recorder) InDoubt() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checker.InDoubt()
}

// Close completes the file, which it does not close.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	return r.file.close()
}

// Replay follows the history in a file that a Recorder wrote.
func Replay(file io.Reader) (*Checker, error) {
	r, cfg, err := newReader(file)
	if err != nil {
		return nil, err
	}
	c := NewChecker(cfg)
	for {
		var e Event
		err := r.read(&e)
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return nil, err
		}
		c.Apply(&e)
	}
}
