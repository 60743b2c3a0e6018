package plusonetest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Execute runs a command line that ends by itself, and returns all that it wrote and its exit code. It fails the test.
func Execute(t testing.TB, binary string, env []string, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env, cmd.Dir = plainEnv(env...), t.TempDir()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("plusone %s: %v\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// plainEnv is the environment of a process: no settings of the machine that runs the tests.
func plainEnv(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, more...)
}
