package bench_test

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

// The defaults are for every run of the tests; "make bench" sets more.
var (
	runsFlag    = flag.Int("bench.runs", 1, "paired runs of each measurement")
	secondsFlag = flag.Duration("bench.time", 200*time.Millisecond, "length of each run")
	warmFlag    = flag.Duration("bench.warm", 50*time.Millisecond, "length of the load before each run")
	outageFlag  = flag.Duration("bench.outage", 400*time.Millisecond, "how long Postgres is away")
	scaleFlag   = flag.Int("bench.scale", 100, "by how much fewer keys and callers than \"make bench\" has, where the number matters")
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(yardstickEnv); kind != "" {
		if err := runYardstick(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	code := m.Run()
	table.print()
	os.Exit(code)
}

// scaled is a number for a measurement of this run.
func scaled(n int) int { return max(1, n / *scaleFlag) }
