package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/alecthomas/kong"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/shard"
)

// auditProgress is how often a long audit says how far it is.
const auditProgress = 5 * time.Second

// auditCommand compares totals with the rows that they are made of, and bases in Redis with totals.
type auditCommand struct {
	storeFlags
	fileFlags
	Repair bool `group:"audit" help:"Set totals that differ to what their rows add up to, in one transaction, and drop cached bases that differ; log each. A SQLite file must not be in use for that."`
}

func (c *auditCommand) check(given []*kong.Flag) error { return c.storeFlags.check(given) }

// errDifferences: the audit was finished and found some.
var errDifferences = &exitError{code: exitDifferences}

// run ends with errDifferences if there are any, also if they were all repaired.
func (c *auditCommand) run(ctx context.Context, env environment) error {
	mode, err := c.mode()
	if err != nil {
		return &exitError{exitAuditFailed, err}
	}
	ledger, err := c.open(ctx, mode, env.logger)
	if err != nil {
		return &exitError{exitAuditFailed, err}
	}
	a := &audit{
		ledger: ledger, settings: c.settings(mode), repair: c.Repair, stdout: env.stdout, logger: env.logger,
		said: time.Now(),
	}
	err = ledger.CheckSettings(ctx, a.settings)
	if err == nil {
		err = a.totals(ctx)
	}
	if err == nil && mode == flush.ModeSharded {
		err = c.bases(ctx, a)
	}
	if err == nil {
		err = a.summary()
	}
	if err = errors.Join(err, ledger.close()); err != nil {
		return &exitError{exitAuditFailed, err}
	}
	if a.differences > 0 {
		return errDifferences
	}
	return nil
}

// auditedLedger is a ledger that was opened for an audit.
type auditedLedger struct {
	flush.AuditLedger
	bases shard.BaseReader // nil in embedded mode
	close func() error
}

// open opens the ledger as it is.
func (c *auditCommand) open(ctx context.Context, mode flush.Mode, logger *slog.Logger) (auditedLedger, error) {
	if mode == flush.ModeEmbedded {
		ledger, err := flush.AuditSQLite(ctx, c.Data, c.Repair, flush.SQLiteOptions{DedupeWindow: c.DedupeWindow, Logger: logger})
		if err != nil {
			return auditedLedger{}, err
		}
		return auditedLedger{ledger, nil, ledger.Close}, nil
	}
	ledger, err := flush.OpenPostgres(ctx, c.PostgresURL, flush.PostgresOptions{DedupeWindow: c.DedupeWindow, Logger: logger})
	if err != nil {
		return auditedLedger{}, err
	}
	return auditedLedger{ledger, ledger, func() error { ledger.Close(); return nil }}, nil
}

// bases compares what Redis caches, which must come after the repair of the ledger.
func (c *auditCommand) bases(ctx context.Context, a *audit) error {
	client, err := openRedis(ctx, c.RedisURL, a.logger)
	if err != nil {
		return err
	}
	defer client.Close()
	redis, err := shard.NewRedis(client, shard.RedisConfig{Shards: c.Shards, Window: c.Window, Dedupe: c.DedupeWindow})
	if err != nil {
		return fmt.Errorf("prepare Redis scripts: %w", err)
	}
	return a.bases(ctx, redis)
}

// audit is an audit under way.
type audit struct {
	ledger   auditedLedger
	settings flush.Settings
	repair   bool
	stdout   io.Writer
	logger   *slog.Logger

	counters, cached, differences, repaired int
	// wrong are keys to repair, and more says that there are others.
	wrong []string
	more  bool
	said  time.Time // when progress was logged last
}

// totals compares the ledger with itself, and repairs it if that was asked for.
func (a *audit) totals(ctx context.Context) error {
	for after, last := "", false; !last; {
		page, err := a.ledger.Compare(ctx, after)
		if err != nil {
			return err
		}
		a.counters += page.Counters
		for _, d := range page.Differences {
			if err := a.report(d); err != nil {
				return err
			}
		}
		a.progress()
		after, last = page.Next, page.Next == ""
	}
	if !a.repair || len(a.wrong) == 0 {
		return nil
	}
	return a.repairTotals(ctx)
}

// report prints a difference, and notes its key for the repair.
func (a *audit) report(d flush.Difference) error {
	a.differences++
	if a.repair && (len(a.wrong) == 0 || a.wrong[len(a.wrong)-1] != d.Key) {
		if len(a.wrong) < flush.MaxRepair {
			a.wrong = append(a.wrong, d.Key)
		} else {
			a.more = true
		}
	}
	rows := "liked_rows"
	if d.Subject == flush.OfCount {
		rows = "history"
	}
	return a.print(d.Key, d.Shard, d.Subject == flush.OfCount, string(d.Subject), cmp.Or(d.Total, "none"), rows, d.Rows)
}

// print writes the line of a difference.
func (a *audit) print(key string, n int, hasShard bool, subject, value, other, otherValue string) error {
	at := ""
	if hasShard && a.settings.Mode == flush.ModeSharded {
		at = " shard=" + strconv.Itoa(n)
	}
	_, err := fmt.Fprintf(a.stdout, "difference key=%s%s %s=%s %s=%s\n", plain(key), at, subject, plain(value), other, plain(otherValue))
	return err
}

// plain quotes what could be taken for more than one word, as no key can that came in by the API.
func plain(s string) string {
	for _, r := range s {
		if r == ' ' || r == '"' || !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

func (a *audit) repairTotals(ctx context.Context) error {
	done, err := a.ledger.Repair(ctx, a.wrong, a.settings.Shards)
	if err != nil {
		return err
	}
	for _, d := range done.Totals {
		a.repaired++
		args := []any{"key", d.Key, string(d.Subject), cmp.Or(d.Total, "none"), "now", d.Rows}
		if d.Subject == flush.OfCount && a.settings.Mode == flush.ModeSharded {
			args = append(args, "shard", d.Shard)
		}
		a.logger.Info("repaired", args...)
	}
	for _, d := range done.Impossible {
		a.logger.Error("cannot be repaired: its rows add up to more than a total can hold", "key", d.Key, "shard", d.Shard, "rows", d.Rows)
	}
	if a.more {
		a.logger.Warn("more keys differ than one run repairs: run it again", "repaired_keys", len(a.wrong))
	}
	return nil
}

// bases compares the bases with the ledger.
func (a *audit) bases(ctx context.Context, redis *shard.Redis) error {
	if a.repaired > 0 {
		// A base that was read before the repair may be cached after it.
		select {
		case <-time.After(shard.Settling):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	var err error
	a.cached, err = redis.AuditBases(ctx, shard.BaseAudit{
		Ledger: a.ledger.bases, Drop: a.repair,
		Report: func(d shard.BaseDifference) error {
			a.differences++
			return a.print(d.Key, d.Shard, true, "base", d.Base, "ledger", d.Ledger)
		},
		Dropped: func(d shard.BaseDifference) {
			a.repaired++
			a.logger.Info("repaired", "key", d.Key, "base", d.Base, "now", "dropped", "shard", d.Shard)
		},
		Progress: func(compared int) { a.cached = compared; a.progress() },
	})
	return err
}

func (a *audit) progress() {
	if time.Since(a.said) < auditProgress {
		return
	}
	a.said = time.Now()
	a.logger.Info("audit under way", "counters", a.counters, "bases", a.cached, "differences", a.differences)
}

// summary is the last line.
func (a *audit) summary() error {
	cached := ""
	if a.settings.Mode == flush.ModeSharded {
		cached = fmt.Sprintf(" bases=%d", a.cached)
	}
	repaired := ""
	if a.repair {
		repaired = fmt.Sprintf(" repaired=%d", a.repaired)
	}
	_, err := fmt.Fprintf(a.stdout, "audited counters=%d%s differences=%d%s\n", a.counters, cached, a.differences, repaired)
	return err
}
