package deadline

// Len is how many timers there are.
func (t *Timers) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.moments)
}

// Look looks at all signals.
func (t *Timers) Look() { t.lookOnce() }

// Signals is how many signals are known.
func (t *Timers) Signals() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.signals)
}

// Looks reports whether signals are looked at.
func (t *Timers) Looks() bool { return t.looking.Load() }
