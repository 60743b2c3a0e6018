//go:build !failpoint

package failpoint

// Hit is where a point is.
func Hit(Name) {}

// Before is the point before a step of the flush.
func Before(string) {}

// After is the point after a step of the flush.
func After(string) {}
