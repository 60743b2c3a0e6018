package deadline

// Len is how many timers there are.
func (t *Timers) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.moments)
}
