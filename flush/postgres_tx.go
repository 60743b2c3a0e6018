package flush

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// idleInTransaction is when the server ends a transaction whose client has gone silent, so that a
	// process cut off from the network does not hold the rows of hot counters for as long as TCP keeps it.
	idleInTransaction = "15s"
	// rollbackTimeout bounds the wait to clean up a connection; after that it is thrown away.
	rollbackTimeout = time.Second
)

// Read committed is what claims rely on: a statement sees what was committed while the one before it
// waited.
const (
	beginSQL = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`
	clockSQL = `SELECT now(), set_config('idle_in_transaction_session_timeout', '` + idleInTransaction + `', true)`
)

// postgresTx is a transaction whose statements travel in batches, one round trip each.
type postgresTx struct {
	conn *pgxpool.Conn
	// sent is when, by the local clock, the first statement had not been sent yet.
	sent time.Time
	// now is the ledger's time at the start of the transaction.
	now time.Time
}

// begin starts a transaction with the statements of batch, which may be empty. After an error nothing
// needs to be ended.
func (p *Postgres) begin(ctx context.Context, batch *pgx.Batch) (*postgresTx, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	tx := &postgresTx{conn: conn, sent: time.Now()}
	first := &pgx.Batch{}
	first.Queue(beginSQL)
	queueClock(first, &tx.now)
	first.QueuedQueries = append(first.QueuedQueries, batch.QueuedQueries...)
	if err := tx.send(ctx, first); err != nil {
		tx.end(ctx)
		return nil, err
	}
	return tx, nil
}

// queueClock adds the statement that reads the ledger's time.
func queueClock(batch *pgx.Batch, now *time.Time) {
	batch.Queue(clockSQL).QueryRow(func(row pgx.Row) error { return row.Scan(now, nil) })
}

// send runs a batch in one round trip.
func (t *postgresTx) send(ctx context.Context, batch *pgx.Batch) error {
	return t.conn.SendBatch(ctx, batch).Close()
}

// commit runs a batch and commits, in one round trip. After an error see commitError.
func (t *postgresTx) commit(ctx context.Context, batch *pgx.Batch) error {
	var tag string
	batch.Queue(`COMMIT`).Exec(func(ct commandTag) error { tag = ct.String(); return nil })
	if err := t.send(ctx, batch); err != nil {
		return err
	}
	if tag != "COMMIT" {
		return fmt.Errorf("the server answered a commit with %s", tag)
	}
	return nil
}

// asOf is a moment by the ledger's clock that is after now: the ledger's time at the start plus all the time
// that has passed here since before the statement that read it was sent. That span includes the network, so
// it is longer than what passed on the ledger. A microsecond more, the clock's resolution, keeps it apart
// from the time of a read whose snapshot was taken just before.
func asOf(ledgerStart, sent time.Time) time.Time {
	return ledgerStart.Add(time.Since(sent).Truncate(time.Microsecond) + 2*time.Microsecond)
}

// end gives the connection back, rolling back what was not committed.
func (t *postgresTx) end(ctx context.Context) {
	defer t.conn.Release() // throws the connection away if it is still in a transaction
	pg := t.conn.Conn().PgConn()
	if pg.IsClosed() || pg.TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if _, err := t.conn.Exec(ctx, `ROLLBACK`); err != nil {
		// Release sees the state it is in; there is nothing left to undo on a dead connection.
		return
	}
}
