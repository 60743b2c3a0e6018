package twin

import (
	"math"
	"math/big"
)

// sum is an exact sum of int64s.
type sum struct{ n big.Int }

func sumOf(terms ...int64) *sum {
	s := &sum{}
	for _, n := range terms {
		s.add(n)
	}
	return s
}

func (s *sum) add(n int64)      { s.n.Add(&s.n, big.NewInt(n)) }
func (s *sum) subtract(n int64) { s.n.Sub(&s.n, big.NewInt(n)) }

// fits reports whether the sum is an int64.
func (s *sum) fits() bool { return s.n.IsInt64() }

// saturated returns the sum, stopped at the edge of int64.
func (s *sum) saturated() int64 {
	switch {
	case s.fits():
		return s.n.Int64()
	case s.n.Sign() > 0:
		return math.MaxInt64
	default:
		return math.MinInt64
	}
}
