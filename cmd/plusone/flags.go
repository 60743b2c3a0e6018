package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kong"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/shard"
)

const description = `plusone counts views, likes and any other tally that gets hot: each acknowledged change exactly once.

The mode follows from the URLs: with none it is embedded (SQLite, one process), with --postgres-url direct (every
change committed in Postgres), with --redis-url and --postgres-url sharded (counted in Redis, drained into Postgres).`

// groups are the headings of --help. Those of a mode hold flags that have no effect in another one.
var groups = kong.Groups{
	"store":    "Where counts are kept:",
	"fixed":    "Fixed when a ledger is first used, and checked at every start:",
	"embedded": "Embedded mode:",
	"postgres": "Direct and sharded mode:",
	"sharded":  "Sharded mode:",
	"listen":   "Addresses:",
	"access":   "Who may call:",
	"policy":   "What may count:",
	"guard":    "Checker that is asked what may count:",
	"limits":   "Limits:",
	"observe":  "Traces and audit log:",
	"audit":    "Audit:",
	"log":      "Log:",
}

// groupModes are the modes of the groups that not all modes have.
var groupModes = map[string][]flush.Mode{
	"embedded": {flush.ModeEmbedded},
	"postgres": {flush.ModeDirect, flush.ModeSharded},
	"sharded":  {flush.ModeSharded},
}

type commandLine struct {
	Log logFlags `embed:""`

	Serve   serveCommand   `cmd:"" help:"Serve the API; in sharded mode also drain windows into Postgres."`
	Flush   flushCommand   `cmd:"" help:"Drain windows into Postgres, and serve no API (sharded mode)."`
	Migrate migrateCommand `cmd:"" help:"Bring the ledger's schema up to date, record its settings, and exit. Serve and flush do that too."`
	Audit   auditCommand   `cmd:"" help:"Compare counters with their history and likes, and in sharded mode what Redis caches with Postgres, on a live system. Exit code 0: they agree, 1: they differ, 2: it failed."`
	Token   tokenCommand   `cmd:"" help:"Draw a token for a caller, and print it with its entry in the file of --tokens-file."`
	Policy  policyCommand  `cmd:"" help:"Check policy files."`
	Health  healthCommand  `cmd:"" help:"Ask the server beside it for its health, as a container does. Exit code 0: it serves, 1: it does not."`
	Version versionCommand `cmd:"" help:"Print the version."`
}

// parse returns the command to run, or nil if help was asked for and given.
func (line *commandLine) parse(args []string, stdout, stderr io.Writer) (command, error) {
	helped := false
	parser, err := kong.New(line,
		kong.Name("plusone"), kong.Description(description),
		kong.DefaultEnvars("PLUSONE"), groups,
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 110}),
		kong.ValueFormatter(describe),
	)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(args)
	switch {
	case helped:
		return nil, nil
	case err != nil:
		return nil, err
	}
	given := givenFlags(parsed)
	switch parsed.Selected().Name {
	case "token":
		return &line.Token, nil
	case "serve":
		return &line.Serve, line.Serve.check(given)
	case "flush":
		return &line.Flush, line.Flush.check(given)
	case "migrate":
		return &line.Migrate, line.Migrate.check(given)
	case "audit":
		return &line.Audit, line.Audit.check(given)
	case "check":
		return &line.Policy.Check, line.Policy.Check.check(given)
	case "health":
		return &line.Health, nil
	default:
		return &line.Version, nil
	}
}

// describe adds the environment variable to the help of a flag, and the default where the flag's form does not
// show it.
func describe(value *kong.Value) string {
	help := value.Help
	if value.IsBool() && value.HasDefault {
		help += " Default " + value.Default + "."
	}
	for _, env := range value.Tag.Envs {
		help += " $" + env
	}
	return help
}

// givenFlags are the flags that the command line or the environment gives.
func givenFlags(parsed *kong.Context) []*kong.Flag {
	var given []*kong.Flag
	for _, path := range parsed.Path {
		if path.Flag != nil {
			given = append(given, path.Flag)
		}
	}
	for _, flag := range parsed.Flags() {
		for _, env := range flag.Envs {
			if os.Getenv(env) != "" {
				given = append(given, flag)
			}
		}
	}
	return given
}

// storeFlags choose the mode and the ledger, and say what never changes about it.
type storeFlags struct {
	PostgresURL string `group:"store" placeholder:"URL" help:"Postgres, as postgres://user:password@host:port/database. Alone it means direct mode."`
	RedisURL    string `group:"store" placeholder:"URL" help:"Redis 7.0 or later, as redis:// or rediss://user:password@host:port; a Redis Cluster is recognised, further nodes are added as ?addr=host:port. With --postgres-url it means sharded mode."`

	DedupeWindow time.Duration `group:"fixed" default:"5m" help:"How long a request id is remembered, and so for how long a retry is safe. Each id costs memory for that long."`
	Shards       int           `group:"sharded" default:"8" help:"Shards that hot keys are spread over, fixed when the ledger is first used. About 4 for each master of a Redis Cluster; on one Redis more only cost."`
	Window       time.Duration `group:"sharded" default:"5s" help:"How long changes gather before they are drained, fixed when the ledger is first used. Longer means fewer writes to Postgres, and totals there that lag more."`
}

// fileFlags are of commands that embedded mode has.
type fileFlags struct {
	Data string `group:"embedded" default:"./plusone.db" help:"The SQLite file, created if it is not there; one process at a time uses it."`
}

// mode follows from the URLs.
func (f *storeFlags) mode() (flush.Mode, error) {
	switch {
	case f.RedisURL == "" && f.PostgresURL == "":
		return flush.ModeEmbedded, nil
	case f.RedisURL == "":
		return flush.ModeDirect, nil
	case f.PostgresURL == "":
		return "", errors.New("--redis-url needs --postgres-url: sharded mode counts in Redis and keeps its ledger in Postgres")
	default:
		return flush.ModeSharded, nil
	}
}

func (f *storeFlags) settings(mode flush.Mode) flush.Settings {
	s := flush.Settings{Mode: mode, DedupeWindow: f.DedupeWindow}
	if mode == flush.ModeSharded {
		s.Shards, s.Window = f.Shards, f.Window
	}
	return s
}

// check reports what is wrong with the values, and flags that were given without effect in the mode.
func (f *storeFlags) check(given []*kong.Flag) error {
	mode, err := f.mode()
	if err != nil {
		return err
	}
	return errors.Join(
		idle(mode, given),
		between("--shards", f.Shards, 1, shard.MaxShards),
		between("--window", f.Window, 100*time.Millisecond, time.Hour),
		wholeMilliseconds("--window", f.Window),
		between("--dedupe-window", f.DedupeWindow, 10*time.Second, 24*time.Hour),
		wholeMilliseconds("--dedupe-window", f.DedupeWindow),
	)
}

func idle(mode flush.Mode, given []*kong.Flag) error {
	seen := map[string]bool{}
	var errs []error
	for _, flag := range given {
		if flag.Group == nil || seen[flag.Name] {
			continue
		}
		seen[flag.Name] = true
		modes, limited := groupModes[flag.Group.Key]
		for _, m := range modes {
			limited = limited && m != mode
		}
		if limited {
			errs = append(errs, fmt.Errorf("--%s has no effect in %s mode, which the URLs given choose", flag.Name, mode))
		}
	}
	return errors.Join(errs...)
}

// between reports a value out of its range.
func between[T cmp.Ordered](flag string, value, low, high T) error {
	if value < low || value > high {
		return fmt.Errorf("%s is %v, and must be from %v to %v", flag, value, low, high)
	}
	return nil
}

func wholeMilliseconds(flag string, d time.Duration) error {
	if d%time.Millisecond != 0 {
		return fmt.Errorf("%s is %v, and must be in whole milliseconds", flag, d)
	}
	return nil
}

// ledgerFlags are of commands that use the ledger for long.
type ledgerFlags struct {
	History          flush.History `group:"store" default:"hour" enum:"hour,minute,none" help:"Keep the history of every counter by the hour, by the minute (sixty times as many rows), or not at all. It may change between starts."`
	PostgresMaxConns int           `group:"postgres" default:"16" help:"Most connections to Postgres, besides one for each shard that is being drained."`
}

func (f *ledgerFlags) check() error {
	return between("--postgres-max-conns", f.PostgresMaxConns, 6, 10_000)
}

// workerFlags are of commands that drain windows.
type workerFlags struct {
	FlushInterval time.Duration `group:"sharded" default:"1s" help:"Pause between two looks for windows to drain, and so how long a rollback of Redis can go unnoticed."`
}

func (f *workerFlags) check() error {
	return between("--flush-interval", f.FlushInterval, 10*time.Millisecond, time.Minute)
}

// processFlags are of commands that run until they are stopped.
type processFlags struct {
	HTTPAddr        string        `group:"listen" name:"http-addr" default:"127.0.0.1:8080" help:"Where /metrics and /healthz are served; port 0 takes a free one."`
	Insecure        bool          `group:"listen" help:"Listen off loopback without TLS, and serve the API there without authentication: only in a network where everybody may change every counter."`
	ShutdownTimeout time.Duration `group:"limits" default:"30s" help:"How long a stop may take: calls under way are answered, accepted changes finished, due windows drained. A second signal ends the process at once."`
}

func (f *processFlags) check() error {
	return between("--shutdown-timeout", f.ShutdownTimeout, time.Second, time.Hour)
}
