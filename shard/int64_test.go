package shard

import (
	"context"
	"strconv"
	"testing"

	"github.com/redis/rueidis"
	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/redistest"
)

// sumScript sums decimals, each after its sign, and returns the sum and the edge that it crosses.
const sumScript = `
local high, low = 0, 0
for i = 1, #ARGV, 2 do high, low = add(high, low, ARGV[i + 1], tonumber(ARGV[i])) end
return {saturated(high, low), edge(high, low) or ''}
`

// TestInt64Script compares the arithmetic of int64.lua, in Redis, with that of math/big.
func TestInt64Script(t *testing.T) {
	t.Parallel()
	library, err := scriptFiles.ReadFile("scripts/int64.lua")
	if err != nil {
		t.Fatal(err)
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{redistest.Start(t).Addr}, ForceSingleClient: true, DisableCache: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	script := rueidis.NewLuaScript(string(library) + sumScript)

	rapid.Check(t, func(rt *rapid.T) {
		terms := rapid.SliceOfN(anyInt64, 0, 40).Draw(rt, "terms")
		signs := make([]int64, len(terms))
		args := make([]string, 0, 2*len(terms))
		for i, n := range terms {
			signs[i] = rapid.SampledFrom([]int64{1, -1}).Draw(rt, "sign")
			args = append(args, strconv.FormatInt(signs[i], 10), strconv.FormatInt(n, 10))
		}
		answer, err := script.Exec(context.Background(), client, nil, args).AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		want, fits := saturated(terms, signs)
		if got := answer[0]; got != strconv.FormatInt(want, 10) {
			rt.Fatalf("sum is %s, want %d", got, want)
		}
		if edge := answer[1]; fits != (edge == "") || !fits && edge != answer[0] {
			rt.Fatalf("sum is %s and crosses the edge %q", answer[0], edge)
		}
	})
}
