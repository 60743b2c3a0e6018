package chaos_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
)

// The defaults are for every run of the tests; "make chaos" sets more.
var (
	seedFlag    = flag.Uint64("chaos.seed", 0, "seed of the faults and the load; 0 takes a random one")
	faultsFlag  = flag.Int("chaos.faults", 3, "faults for each deployment")
	opsFlag     = flag.Int64("chaos.ops", 0, "operations to check for each deployment, at least")
	limitFlag   = flag.Duration("chaos.limit", 0, "end each deployment after this long, whatever is missing; 0 is never")
	historyFlag = flag.String("chaos.history", "", "folder for the histories")
	skewFlag    = flag.Bool("chaos.skew", false, "also build a server whose clock is an hour off, which builds all of Go's library anew")
)

// mountedEnv says that this process has mounts of its own.
const mountedEnv = "PLUSONE_CHAOS_MOUNTED"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() == 0 && os.Getenv(mountedEnv) == "" {
		os.Exit(runMounted())
	}
	if *seedFlag == 0 {
		*seedFlag = rand.Uint64()
	}
	fmt.Printf("chaos: seed %d (repeat with -chaos.seed=%d)\n", *seedFlag, *seedFlag)
	code := m.Run()
	table.print()
	planted.print()
	os.Exit(code)
}

// runMounted runs the tests where what they mount, the small disks that they fill, is seen by nobody else and gone with
// the last process.
func runMounted() int {
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "--", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), mountedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "unshare:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
