package shard

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// anyInt64 is often near an edge of what Go, Lua or int64.lua can hold in one number.
var anyInt64 = rapid.OneOf(
	rapid.Int64(),
	rapid.Int64Range(-10, 10),
	rapid.Custom(func(t *rapid.T) int64 {
		edge := rapid.SampledFrom([]int64{
			math.MaxInt64, math.MinInt64, 1 << 53, -1 << 53, 1_000_000_000, -1_000_000_000, 9_223_372_036_000_000_000,
			-9_223_372_036_000_000_000, -9_223_372_037_000_000_000 + 1<<62, 999_999_999_000_000_000,
		}).Draw(t, "edge")
		return edge + rapid.Int64Range(-3, 3).Draw(t, "offset") // wraps to the other edge
	}),
)

// saturated is the sum of terms, stopped at the edge of int64, and whether it fits.
func saturated(terms []int64, signs []int64) (n int64, fits bool) {
	total := new(big.Int)
	for i, term := range terms {
		total.Add(total, new(big.Int).Mul(big.NewInt(term), big.NewInt(signs[i])))
	}
	switch {
	case total.IsInt64():
		return total.Int64(), true
	case total.Sign() > 0:
		return math.MaxInt64, false
	default:
		return math.MinInt64, false
	}
}

func TestSum(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		terms := rapid.SliceOfN(anyInt64, 0, 40).Draw(t, "terms")
		signs := make([]int64, len(terms))
		var s sum
		for i, n := range terms {
			s.add(n)
			signs[i] = 1
		}
		if want, _ := saturated(terms, signs); s.int64() != want {
			t.Fatalf("sum is %d, want %d", s.int64(), want)
		}
	})
}
