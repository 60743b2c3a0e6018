package history

// Stats are what a history has of each.
type Stats struct {
	// Changes are entries and likes that were acknowledged, Repeats those sent again under their id, Reads the counts and
	// states that were read and checked, Stale those of them that were marked as such.
	Changes, Repeats, Reads, Stale int64
	// FailedReads are calls. Refused are changes that were not counted, though nothing forbids them.
	FailedReads, Refused int64
	// Violations are broken promises.
	Violations int64

	outcomes [Expired + 1]int64
}

// Checked are the operations that were checked: changes of a counter and values read.
func (s Stats) Checked() int64 { return s.Changes + s.Reads }

// Answers is how many changes, or batches of them, were answered so.
func (s Stats) Answers(o Outcome) int64 { return s.outcomes[o] }

// Add adds the numbers of another history.
func (s *Stats) Add(o Stats) {
	s.Changes += o.Changes
	s.Repeats += o.Repeats
	s.Reads += o.Reads
	s.Stale += o.Stale
	s.FailedReads += o.FailedReads
	s.Refused += o.Refused
	s.Violations += o.Violations
	for i := range s.outcomes {
		s.outcomes[i] += o.outcomes[i]
	}
}

// Stats are the numbers so far.
func (c *Checker) Stats() Stats { return c.stats }
