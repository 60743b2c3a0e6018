package flush

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/plusone-dev/plusone/internal/counter"
)

// sqliteWriter is the one connection that writes, with its prepared statements.
type sqliteWriter struct {
	db         *sql.DB
	conn       *sql.Conn
	statements map[sized]sqliteStatement
	args       []driver.NamedValue // reused
	known      knownBalances
	// expectKnown says that request ids are probably not all new.
	expectKnown bool
}

// sqliteStatement is what the driver's statements are.
type sqliteStatement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
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
	return &sqliteWriter{db: db, conn: conn, statements: make(map[sized]sqliteStatement)}, nil
}

// close also undoes a transaction that is open.
func (w *sqliteWriter) close() error {
	var err error
	for _, statement := range w.statements {
		err = errors.Join(err, w.conn.Raw(func(any) error { return statement.Close() }))
	}
	return errors.Join(err, w.conn.Close(), w.db.Close())
}

// restart undoes what was done in the transaction and begins another.
func (w *sqliteWriter) restart(ctx context.Context) error {
	if _, err := w.conn.ExecContext(ctx, `ROLLBACK`); err != nil {
		return err
	}
	return w.run(&begin)
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
		if err := s.writer.run(&begin); err != nil {
			return err
		}
		if err := fn(ctx, s.writer); err != nil {
			return err
		}
		committing = true
		return s.writer.run(&commit)
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
var rowsAtOnce = []int{128, 64, 32, 16, 8, 4, 2, 1}

// many is a statement over any number of rows of parameters: head, then a group of columns for every row.
type many struct {
	head, tail string
	columns    int
}

var (
	begin  = many{`BEGIN IMMEDIATE`, ``, 0}
	commit = many{`COMMIT`, ``, 0}
)

// text is the statement for n rows, or without any.
func (m *many) text(n int) string {
	if n == 0 {
		return m.head + m.tail
	}
	row := "(?" + strings.Repeat(", ?", m.columns-1) + ")"
	return m.head + row + strings.Repeat(", "+row, n-1) + m.tail
}

// sized is a statement for so many rows.
type sized struct {
	*many
	rows int
}

// each prepares the statement for as many rows as fit and calls fn with it and their parameters, until args are used
// up. It and fn use the connection of the driver: database/sql would cost about as much as SQLite.
func (w *sqliteWriter) each(m *many, args []any, fn func(sqliteStatement, []driver.NamedValue) error) error {
	if len(args) == 0 {
		return nil
	}
	return w.raw(func(conn driver.ConnPrepareContext) error {
		for _, rows := range rowsAtOnce {
			for n := rows * m.columns; len(args) >= n; args = args[n:] {
				statement, err := w.prepare(conn, sized{m, rows})
				if err != nil {
					return err
				}
				w.args = w.args[:0]
				for i, arg := range args[:n] {
					w.args = append(w.args, driver.NamedValue{Ordinal: i + 1, Value: arg})
				}
				if err := fn(statement, w.args); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// raw calls fn with the connection of the driver.
func (w *sqliteWriter) raw(fn func(driver.ConnPrepareContext) error) error {
	return w.conn.Raw(func(conn any) error {
		c, ok := conn.(driver.ConnPrepareContext)
		if !ok {
			return fmt.Errorf("a connection of the driver is a %T", conn)
		}
		return fn(c)
	})
}

// prepare returns a statement of the connection.
func (w *sqliteWriter) prepare(conn driver.ConnPrepareContext, key sized) (sqliteStatement, error) {
	if statement, ok := w.statements[key]; ok {
		return statement, nil
	}
	prepared, err := conn.PrepareContext(context.Background(), key.text(key.rows))
	if err != nil {
		return nil, err
	}
	statement, ok := prepared.(sqliteStatement)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a statement of the driver is a %T", prepared), prepared.Close())
	}
	w.statements[key] = statement
	return statement, nil
}

// run runs a statement that has no rows of parameters.
func (w *sqliteWriter) run(m *many) error {
	return w.raw(func(conn driver.ConnPrepareContext) error {
		statement, err := w.prepare(conn, sized{m, 0})
		if err != nil {
			return err
		}
		_, err = statement.ExecContext(context.Background(), nil)
		return err
	})
}

// exec writes rows. The parameters are of the types of driver.Value.
func (w *sqliteWriter) exec(m *many, args []any) error {
	return w.each(m, args, func(statement sqliteStatement, args []driver.NamedValue) error {
		_, err := statement.ExecContext(context.Background(), args)
		return err
	})
}

// query calls fn for every row found. What fn is given is overwritten by the next.
func (w *sqliteWriter) query(m *many, args []any, fn func(row sqliteRow)) error {
	return w.each(m, args, func(statement sqliteStatement, args []driver.NamedValue) (err error) {
		rows, err := statement.QueryContext(context.Background(), args)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		row := make(sqliteRow, len(rows.Columns()))
		for {
			if err := rows.Next(row); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			fn(row)
		}
	})
}

// sqliteRow is a row that was found. A column has the type that it is asked for: the tables are STRICT.
type sqliteRow []driver.Value

func (r sqliteRow) integer(i int) int64 {
	v, _ := r[i].(int64)
	return v
}

func (r sqliteRow) text(i int) string {
	v, _ := r[i].(string)
	return v
}

func (r sqliteRow) blob(i int) []byte {
	v, _ := r[i].([]byte)
	return v
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
