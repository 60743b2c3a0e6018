// Command plusone is the counter service: it serves the API, drains windows into Postgres, and migrates
// and audits the ledger.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Exit codes of audit, which has two ways to end without success, as diff has.
const (
	exitDifferences = 1
	exitAuditFailed = 2
)

// exitError has an exit code of its own. Without an error all is said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// From then on signals have their default effect, so that a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes a command line until it is done or ctx ends, which stops a server in order, and returns the exit
// code. The environment gives the values of flags that args do not.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	line := &commandLine{}
	selected, err := line.parse(args, stdout, stderr)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "plusone: %s\nRun \"plusone --help\" for the commands and their flags.\n", redact(err.Error()))
		return exitUsage
	}
	if selected == nil { // it was --help
		return exitOK
	}
	logger := line.Log.logger(stderr)
	err = selected.run(ctx, environment{stdout: stdout, logger: logger})
	var usage *usageError
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(stderr, "plusone: %v\n", err)
		return exitUsage
	case errors.As(err, &exit):
		if exit.err != nil {
			logger.Error("failed", "error", exit.err)
		}
		return exit.code
	default:
		logger.Error("failed", "error", err)
		return exitFailed
	}
}

// command is a parsed command.
type command interface {
	run(ctx context.Context, env environment) error
}

// urls finds connection strings in an error about the command line, where one may stand in a wrong place.
var urls = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://\S+|(?i)password\s*=\s*\S+`)

func redact(message string) string { return urls.ReplaceAllString(message, "[redacted]") }
