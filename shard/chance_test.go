package shard

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// Chance makes a fuzz target of a property of rapid. Each byte of the input is one draw, for which rapid takes eight:
// some draws look at the first of their bits, others at all of them, so they all get that byte. The zeros that follow
// let the last operation come to its end, and are the end of all lists.
func Chance(prop func(t *testing.T, rt *rapid.T)) func(t *testing.T, input []byte) {
	const draw, last = 8, 256
	return func(t *testing.T, input []byte) {
		draws := make([]byte, 0, draw*(len(input)+last))
		for _, b := range input {
			draws = append(draws, bytes.Repeat([]byte{b}, draw)...)
		}
		draws = append(draws, make([]byte, draw*last)...)
		rapid.MakeFuzz(func(rt *rapid.T) { prop(t, rt) })(t, draws)
	}
}

// AddChance adds n seeds to a target made by Chance: as many random inputs of the length, the same ones each time.
func AddChance(f *testing.F, n, length int) {
	f.Helper()
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 0))
		input := make([]byte, length)
		for i := range input {
			input[i] = byte(rnd.Uint32())
		}
		f.Add(input)
	}
}
