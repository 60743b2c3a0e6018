package flush

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plusone-dev/plusone/internal/counter"
)

// SQLSTATE codes, from appendix A of the Postgres manual.
const (
	codeNumericOutOfRange    = "22003"
	codeUniqueViolation      = "23505"
	codeSerializationFailure = "40001"
	codeDeadlockDetected     = "40P01"
	codeReadOnlyTransaction  = "25006" // the server has become a standby
	codeIdleInTransaction    = "25P03"
	codeDiskFull             = "53100"
	codeOutOfMemory          = "53200"
	classConnection          = "08"
	classResources           = "53"
	classOperator            = "57" // shutdown, cancellation
)

// maxAttempts is how often a transaction is tried that the server gave up for a deadlock or a conflict.
const maxAttempts = 5

func isOverflow(err error) bool { return hasCode(err, codeNumericOutOfRange) }

// isConflict reports that the transaction was rolled back and may succeed if it is repeated.
func isConflict(err error) bool {
	return hasCode(err, codeSerializationFailure, codeDeadlockDetected) || errors.Is(err, errClaimVanished)
}

// isUniqueViolation reports that a row of the table was there already.
func isUniqueViolation(err error, table string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeUniqueViolation && pgErr.TableName == table
}

func hasCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	for _, code := range codes {
		if pgErr.Code == code {
			return true
		}
	}
	return false
}

// postgresError wraps an error after which nothing was changed. What is neither a lack of resources nor of
// a server, a missing table say, gets no meaning of the counter package: it is a fault to be looked into.
func postgresError(op string, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.SeverityUnlocalized != "ERROR" { // FATAL and PANIC end the connection
		return fmt.Errorf("%s: %w: %w", op, counter.ErrUnavailable, err)
	}
	switch code := pgErr.Code; {
	case code == codeDiskFull || code == codeOutOfMemory:
		return fmt.Errorf("%s: %w: %w", op, counter.ErrFull, err)
	case code[:2] == classConnection, code[:2] == classResources, code[:2] == classOperator,
		code == codeReadOnlyTransaction, code == codeIdleInTransaction,
		code == codeSerializationFailure, code == codeDeadlockDetected:
		return fmt.Errorf("%s: %w: %w", op, counter.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// commitError wraps an error of a round trip that commits. Nothing was changed only if the server has said
// so, or was not sent anything. A server that ends the connection (severity FATAL) may have committed: it
// does, when it is shut down while the commit waits for a synchronous standby.
func commitError(op string, err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" || pgconn.SafeToRetry(err) {
		return postgresError(op, err)
	}
	return fmt.Errorf("%s: %w: %w", op, counter.ErrInDoubt, err)
}
