package chaos_test

import (
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// skewedClock is the program with another clock, in all of it: PLUSONE_CLOCK_SKEW says by how much it is ahead.
func skewedClock() (plusonetest.Variant, error) {
	v := failpoints
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return v, err
	}
	module, err := filepath.Abs("../..")
	if err != nil {
		return v, err
	}
	file, err := filepath.Rel(module, filepath.Join(strings.TrimSpace(string(goroot)), "src", "time", "time.go"))
	if err != nil {
		return v, err
	}
	v.Replace = []plusonetest.Replacement{
		{File: file, Old: "	sec, nsec, mono := runtimeNow()\n", New: "	sec, nsec, mono := runtimeNow()\n	sec += clockSkew\n"},
		{File: file, Old: "func unixTime(sec int64, nsec int32) Time {", New: `var clockSkew = func() int64 {
	text, _ := syscall.Getenv("PLUSONE_CLOCK_SKEW")
	if text == "" {
		return 0
	}
	d, err := ParseDuration(text)
	if err != nil {
		panic("PLUSONE_CLOCK_SKEW: " + err.Error())
	}
	return int64(d / Second)
}()

func unixTime(sec int64, nsec int32) Time {`},
		{File: file, Old: "import (\n", New: "import (\n\t\"syscall\"\n"},
	}
	return v, nil
}
