package shard

import (
	"math"
	"math/bits"
)

// sum adds int64s without overflow, in two's complement of 128 bits. A key whose total fits in an int64 may
// have partial sums that do not.
type sum struct{ hi, lo uint64 }

func (s *sum) add(n int64) {
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, uint64(n), 0)
	s.hi, _ = bits.Add64(s.hi, uint64(n>>63), carry)
}

// int64 returns the sum, stopped at the edge of int64.
func (s sum) int64() int64 {
	switch {
	case s.hi == 0 && s.lo <= math.MaxInt64, s.hi == math.MaxUint64 && s.lo > math.MaxInt64:
		return int64(s.lo)
	case int64(s.hi) < 0:
		return math.MinInt64
	default:
		return math.MaxInt64
	}
}
