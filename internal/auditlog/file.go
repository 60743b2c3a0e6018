package auditlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
)

// fileMode lets nobody but the owner read who did what to whom.
const fileMode = 0o600

// ToFile makes a log of a file, which it appends to and creates if need be. Each line is on the disk before it counts as
// written. If the file is renamed or removed, as to rotate it, the next line goes to a new one of the name.
func ToFile(path string, logger *slog.Logger, registry prometheus.Registerer) (*Log, error) {
	s := &fileSink{path: path}
	if err := s.reopen(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l, err := newLog(s, logger, registry)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return l, nil
}

type fileSink struct {
	path string
	file *os.File
	// torn says that the file may end in a part of a line.
	torn bool
	// closed is set by close, for good.
	closed bool
}

var errClosed = errors.New("closed")

func (s *fileSink) write(_ context.Context, l line) error {
	if s.closed {
		return errClosed
	}
	text, err := encode(l)
	if err != nil {
		return err
	}
	if !s.current() {
		if err := s.reopen(); err != nil {
			return err
		}
	}
	if s.torn {
		text = append([]byte{'\n'}, text...)
	}
	// Until all of it is safe, nobody knows how much of it is there.
	s.torn = true
	if _, err := s.file.Write(text); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.torn = false
	return nil
}

// current reports whether the file that is open is still the one of the name.
func (s *fileSink) current() bool {
	if s.file == nil {
		return false
	}
	named, err := os.Stat(s.path)
	if err != nil {
		return false
	}
	open, err := s.file.Stat()
	return err == nil && os.SameFile(named, open)
}

// reopen opens the file of the name, and gives up the one that was open.
func (s *fileSink) reopen() error {
	file, err := os.OpenFile(s.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	torn, err := endsTorn(file)
	if err == nil {
		// Or a crash of the machine could take a new file away, with the lines that are in it.
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if s.file != nil {
		_ = s.file.Close() // its lines are safe
	}
	s.file, s.torn = file, torn
	return nil
}

// endsTorn reports whether a file ends in a part of a line, as after a crash.
func endsTorn(file *os.File) (bool, error) {
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, &fs.PathError{Op: "open", Path: file.Name(), Err: errors.New("not a regular file")}
	}
	if info.Size() == 0 {
		return false, nil
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], info.Size()-1); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return last[0] != '\n', nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (s *fileSink) close() error {
	s.closed = true
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}
