package main

import (
	"context"

	"github.com/alecthomas/kong"

	"github.com/plusone-dev/plusone/flush"
)

type migrateCommand struct {
	storeFlags
	fileFlags
}

func (c *migrateCommand) run(ctx context.Context, env environment) error {
	mode, err := c.mode()
	if err != nil {
		return err
	}
	options := ledgerOptions{storeFlags: c.storeFlags, data: c.Data, history: flush.HistoryHour, logger: env.logger}
	if mode == flush.ModeEmbedded {
		ledger, err := openSQLite(ctx, options)
		if err != nil {
			return err
		}
		if err := ledger.Close(); err != nil {
			return err
		}
	} else {
		ledger, err := openPostgres(ctx, mode, options)
		if err != nil {
			return err
		}
		ledger.Close()
	}
	env.logger.Info("migrated", "mode", string(mode))
	return nil
}

func (c *migrateCommand) check(given []*kong.Flag) error { return c.storeFlags.check(given) }
