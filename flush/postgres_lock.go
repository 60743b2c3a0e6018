package flush

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// The first half of the lock's name is the table's object id, so that deployments in two schemas of one
// database have locks of their own.
const (
	lockShardSQL   = `SELECT pg_try_advisory_lock('shards'::regclass::oid::int, $1)`
	unlockShardSQL = `SELECT pg_advisory_unlock('shards'::regclass::oid::int, $1)`
)

var errLockLost = errors.New("the lock was not held any more")

// LockShard implements WindowLedger by an advisory lock, which ends with its connection. Every lock held
// takes a connection of its own.
func (p *Postgres) LockShard(ctx context.Context, shard int) (ShardLock, bool, error) {
	conn, err := p.locks.Acquire(ctx)
	if err != nil {
		return ShardLock{}, false, postgresError("lock shard", err)
	}
	var ok bool
	if err := conn.QueryRow(ctx, lockShardSQL, shard).Scan(&ok); err != nil {
		// The lock may have been taken: only the end of the connection is sure to free it.
		discard(ctx, conn)
		return ShardLock{}, false, postgresError("lock shard", err)
	}
	if !ok {
		conn.Release()
		return ShardLock{}, false, nil
	}
	return ShardLock{
		// The server frees the lock when it ends the session, so a session that answers has it.
		Held: func(ctx context.Context) error {
			if err := conn.Ping(ctx); err != nil {
				return fmt.Errorf("%w: %w", errLockLost, postgresError("lock shard", err))
			}
			return nil
		},
		Release: sync.OnceFunc(func() { p.unlockShard(context.WithoutCancel(ctx), conn, shard) }),
	}, true, nil
}

func (p *Postgres) unlockShard(ctx context.Context, conn *pgxpool.Conn, shard int) {
	ctx, cancel := context.WithTimeout(ctx, rollbackTimeout)
	defer cancel()
	var held bool
	err := conn.QueryRow(ctx, unlockShardSQL, shard).Scan(&held)
	if err == nil && !held {
		err = errLockLost
	}
	if err != nil {
		p.logger.Warn("flush lock was lost before its release", slog.Int("shard", shard), slog.Any("error", err))
		discard(ctx, conn)
		return
	}
	conn.Release()
}

// discard closes a pooled connection for good. The pool replaces it.
func discard(ctx context.Context, conn *pgxpool.Conn) {
	// The socket is closed in any case; an error only says that the goodbye was not heard.
	_ = conn.Hijack().Close(ctx)
}
