package flush

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/plusone-dev/plusone/internal/counter"
)

// sqliteReaders bounds the reads that run at once; readers never wait for the writer.
const sqliteReaders = 4

// SQLiteOptions are how a process uses its ledger in a SQLite file.
type SQLiteOptions struct {
	// History is HistoryHour if empty.
	History History
	// HistoryOf, if not nil, tells the history of keys that have one of their own.
	HistoryOf HistoryOf
	// DedupeWindow is counter.DefaultDedupeWindow if 0.
	DedupeWindow time.Duration
	// Clock is time.Now if nil.
	Clock func() time.Time
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

// SQLite is a ledger in a file, for one process: it judges ages by that process's clock, and dates changes by one that does
// not go back when that does. A commit is on disk when it returns.
type SQLite struct {
	path    string
	opts    SQLiteOptions
	clock   *steadyClock
	lock    *sql.DB // holds the lock that keeps other processes out
	readers *sql.DB
	// prints is the key of fingerprints: zero until EnsureSettings.
	prints atomic.Pointer[counter.FingerprintKey]
	// forgottenIDs and forgottenOnce only grow.
	forgottenIDs, forgottenOnce atomic.Int64

	mu     sync.Mutex // one commit at a time; SQLite has no more
	writer *sqliteWriter
	closed bool
	behind bool // the clock was set back, and it has been told
}

var _ DirectLedger = (*SQLite)(nil)

// OpenSQLite opens the ledger at path, creating the file if it is not there, in a folder that must be. While
// it is open no other process can open it; a process that was killed leaves no lock behind.
func OpenSQLite(ctx context.Context, path string, opts SQLiteOptions) (*SQLite, error) {
	opts.History = cmp.Or(opts.History, HistoryHour)
	opts.DedupeWindow = cmp.Or(opts.DedupeWindow, counter.DefaultDedupeWindow)
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if err := opts.History.validate(); err != nil {
		return nil, err
	}
	path, err := resolve(path)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	s := &SQLite{path: path, opts: opts, clock: &steadyClock{wall: opts.Clock}}
	s.prints.Store(new(counter.FingerprintKey))
	if s.lock, err = lockSQLite(ctx, path); err != nil {
		return nil, err
	}
	if s.readers, err = sql.Open("sqlite", sqliteDSN(path, "query_only(1)")); err == nil {
		s.readers.SetMaxOpenConns(sqliteReaders)
		s.readers.SetMaxIdleConns(sqliteReaders)
		// The writer comes first: it creates the file.
		if s.writer, err = openSQLiteWriter(ctx, path); err == nil {
			return s, nil
		}
		err = errors.Join(err, s.readers.Close())
	}
	return nil, sqliteError("open ledger", errors.Join(err, s.lock.Close()))
}

// resolve makes the path absolute and free of links, so that every way to name a file leads to one lock.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	target, err := filepath.EvalSymlinks(path)
	if err == nil {
		return target, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// lockSQLite takes the lock of a ledger: an exclusive transaction, never ended, on an empty database beside
// it. That is a lock of the operating system, which goes with its process, on every system that SQLite
// knows. The ledger itself cannot be locked so, since its readers have connections of their own.
func lockSQLite(ctx context.Context, path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", fileURL(path+".lock").String())
	if err != nil {
		return nil, sqliteError("open ledger", err)
	}
	db.SetMaxOpenConns(1)
	if _, err = db.ExecContext(ctx, `BEGIN EXCLUSIVE`); err != nil {
		var sqliteErr *sqlite.Error
		if errors.As(err, &sqliteErr) && sqliteErr.Code()&0xff == sqlite3.SQLITE_BUSY {
			err = fmt.Errorf("open ledger: %s is in use by another process: %w", path, err)
		} else {
			err = sqliteError("open ledger", err)
		}
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func fileURL(path string) *url.URL {
	return &url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path)}
}

// sqliteDSN names the database for connections with our settings: write-ahead log, so that readers and the
// writer do not wait for each other; every commit synced, on macOS too, where that takes an order of its own.
func sqliteDSN(path string, pragmas ...string) string {
	u := fileURL(path)
	u.RawQuery = url.Values{"_pragma": append([]string{
		"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "fullfsync(1)", "wal_autocheckpoint(4000)",
	}, pragmas...)}.Encode()
	return u.String()
}

// Close waits for the commit under way and closes the file. It may be repeated.
func (s *SQLite) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.readers.Close()
	if s.writer != nil {
		err = errors.Join(err, s.writer.close())
	}
	// Last, so that the next process finds a closed file.
	return errors.Join(err, s.lock.Close())
}

// Ping reports whether the file can be read.
func (s *SQLite) Ping(ctx context.Context) error {
	if err := s.readers.PingContext(ctx); err != nil {
		return sqliteError("ping", err)
	}
	return nil
}

// Migrate brings the schema up to date.
func (s *SQLite) Migrate(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	db, err := sql.Open("sqlite", sqliteDSN(s.path))
	if err != nil {
		return sqliteError("migrate", err)
	}
	err = migrate(ctx, db, goose.DialectSQLite3, "sqlite", goose.WithSlog(s.opts.Logger))
	if err = errors.Join(err, db.Close()); err != nil {
		return sqliteError("migrate", err)
	}
	return nil
}

// EnsureSettings records the settings in a new ledger, and otherwise returns a SettingsError if they are
// not those recorded.
func (s *SQLite) EnsureSettings(ctx context.Context, want Settings) error {
	var mismatch error
	err := s.update(ctx, "read settings", func(ctx context.Context, w *sqliteWriter) error {
		for _, row := range want.record() {
			if _, err := w.conn.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`, row.name, row.value); err != nil {
				return err
			}
		}
		rows, err := w.conn.QueryContext(ctx, `SELECT name, value FROM settings`)
		if err != nil {
			return err
		}
		recorded := make(map[string]string)
		var name, value string
		if err := forEachRow(rows, []any{&name, &value}, func() { recorded[name] = value }); err != nil {
			return err
		}
		var key *counter.FingerprintKey
		if key, mismatch = want.use(recorded); mismatch == nil {
			s.prints.Store(key)
		}
		return mismatch
	})
	if mismatch != nil {
		return mismatch
	}
	return err
}

// sqliteError wraps an error after which nothing was changed.
func sqliteError(op string, err error) error {
	var sqliteErr *sqlite.Error
	if errors.As(err, &sqliteErr) {
		switch sqliteErr.Code() & 0xff {
		case sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM:
			return fmt.Errorf("%s: %w: %w", op, counter.ErrFull, err)
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT,
			sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
			return fmt.Errorf("%s: %w: %w", op, counter.ErrUnavailable, err)
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", op, counter.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// steadyClock is a clock that never shows the same moment twice, nor an earlier one after a later one,
// whatever happens to the clock of the wall. Moments are whole microseconds.
type steadyClock struct {
	wall func() time.Time
	mu   sync.Mutex
	last time.Time
}

func (c *steadyClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.wall().Truncate(time.Microsecond).UTC()
	if !t.After(c.last) {
		t = c.last.Add(time.Microsecond)
	}
	c.last = t
	return t
}

// tellOfStep logs, once, that the clock of the wall is behind the steady one by so many ms. It needs the lock.
func (s *SQLite) tellOfStep(behind int64) {
	before := s.behind
	s.behind = behind > claimMargin.Milliseconds()
	if s.behind && !before {
		s.opts.Logger.Warn("the clock was set back: until it has caught up, changes are dated by the moment at which it was",
			"behind", time.Duration(behind)*time.Millisecond)
	}
}
