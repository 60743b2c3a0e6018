package history

// Stats are what a history has of each.
type Stats struct {
	// Changes are entries and likes that were acknowledged, Repeats those sent again under their id, Reads the counts and
	// states that were read and checked, Stale those of them that were marked as such.
	Changes, Repeats, Reads, Stale int64
	// Doubts are changes that were in doubt, if only for a time, Unsettled those without a request id, which stay so.
	Doubts, Unsettled int64
	// FailedReads are calls. Refused are changes that were not counted, though nothing forbids them.
	FailedReads, Refused int64
	// Violations are broken promises.
	Violations int64
}

// Checked are the operations that were checked: changes of a counter and values read.
func (s Stats) Checked() int64 { return s.Changes + s.Reads }

// Add adds the numbers of another history.
func (s *Stats) Add(o Stats) {
	s.Changes += o.Changes
	s.Repeats += o.Repeats
	s.Reads += o.Reads
	s.Stale += o.Stale
	s.Doubts += o.Doubts
	s.Unsettled += o.Unsettled
	s.FailedReads += o.FailedReads
	s.Refused += o.Refused
	s.Violations += o.Violations
}

// Stats are the numbers so far.
func (c *Checker) Stats() Stats { return c.stats }
