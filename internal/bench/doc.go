// Package bench measures plusone beside yardsticks, in one run on one machine: what counts are the ratios. It has tests only:
// "go test" runs each measurement for a moment, so that none can rot, and "make bench" long enough to tell something.
package bench
