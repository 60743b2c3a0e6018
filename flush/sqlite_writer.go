package flush

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/plusone-dev/plusone/internal/counter"
)

// sqliteWriter is the one connection that writes, with its prepared statements.
type sqliteWriter struct {
	db         *sql.DB
	conn       *sql.Conn
	statements map[string]*sql.Stmt
}

func openSQLiteWriter(ctx context.Context, path string) (*sqliteWriter, error) {
	db, err := sql.Open("sqlite", sqliteDSN(path))
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &sqliteWriter{db: db, conn: conn, statements: make(map[string]*sql.Stmt)}, nil
}

// close also undoes a transaction that is open.
func (w *sqliteWriter) close() error {
	var err error
	for _, statement := range w.statements {
		err = errors.Join(err, statement.Close())
	}
	return errors.Join(err, w.conn.Close(), w.db.Close())
}

// update runs fn in a transaction and commits it. Its errors are wrapped; one that is counter.ErrInDoubt may
// have been committed, after any other nothing was changed. The transaction is short and in this process, so
// ctx only decides whether it begins.
func (s *SQLite) update(ctx context.Context, op string, fn func(context.Context, *sqliteWriter) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w: %w", op, counter.ErrUnavailable, context.Cause(ctx))
	}
	if s.closed {
		return fmt.Errorf("%s: %w: the ledger is closed", op, counter.ErrUnavailable)
	}
	ctx = context.WithoutCancel(ctx)
	if s.writer == nil {
		writer, err := openSQLiteWriter(ctx, s.path)
		if err != nil {
			return sqliteError(op, err)
		}
		s.writer = writer
	}
	committing := false
	err := func() error {
		if _, err := s.writer.conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
			return err
		}
		if err := fn(ctx, s.writer); err != nil {
			return err
		}
		committing = true
		_, err := s.writer.conn.ExecContext(ctx, `COMMIT`)
		return err
	}()
	if err == nil {
		return nil
	}
	// Whatever state the connection is in, closing it undoes the transaction. The next one opens another.
	err = errors.Join(err, s.writer.close())
	s.writer = nil
	var sqliteErr *sqlite.Error
	if committing && (!errors.As(err, &sqliteErr) || sqliteErr.Code()&0xff != sqlite3.SQLITE_FULL) {
		// A commit record that could not be synced may be found after a crash all the same. A full disk
		// had no room for it.
		return fmt.Errorf("%s: %w: %w", op, counter.ErrInDoubt, err)
	}
	return sqliteError(op, err)
}

// rowsAtOnce are how many rows a prepared statement takes, largest first: a call costs as much as several
// rows.
var rowsAtOnce = []int{64, 8, 1}

// many is a statement over any number of rows of parameters: head, then a group of columns for every row.
type many struct {
	head, tail string
	columns    int
}

// text is the statement for n rows.
func (m many) text(n int) string {
	row := "(?" + strings.Repeat(", ?", m.columns-1) + ")"
	return m.head + row + strings.Repeat(", "+row, n-1) + m.tail
}

// each prepares the statement for as many rows as fit and calls fn with them, until args are used up.
func (w *sqliteWriter) each(ctx context.Context, m many, args []any, fn func(*sql.Stmt, []any) error) error {
	for _, rows := range rowsAtOnce {
		for n := rows * m.columns; len(args) >= n; args = args[n:] {
			text := m.text(rows)
			statement := w.statements[text]
			if statement == nil {
				var err error
				if statement, err = w.conn.PrepareContext(ctx, text); err != nil {
					return err
				}
				w.statements[text] = statement
			}
			if err := fn(statement, args[:n]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *sqliteWriter) exec(ctx context.Context, m many, args []any) error {
	return w.each(ctx, m, args, func(statement *sql.Stmt, args []any) error {
		_, err := statement.ExecContext(ctx, args...)
		return err
	})
}

// query calls fn for every row found, after scanning it into dest.
func (w *sqliteWriter) query(ctx context.Context, m many, args []any, dest []any, fn func()) error {
	return w.each(ctx, m, args, func(statement *sql.Stmt, args []any) error {
		rows, err := statement.QueryContext(ctx, args...)
		if err != nil {
			return err
		}
		return forEachRow(rows, dest, fn)
	})
}

func forEachRow(rows *sql.Rows, dest []any, fn func()) (err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		fn()
	}
	return rows.Err()
}
