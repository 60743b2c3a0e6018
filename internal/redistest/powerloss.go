package redistest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

// PowerLoss is a Kill after which the append-only file has only what had reached the disk, as if the machine had lost
// its power, and a start with that. It returns how many bytes of the file were lost. The system tells which pages it
// has not written yet (Linux 6.5 or later, with the folder for temporary files on a disk), so up to a page more than that
// is lost.
func (s *Server) PowerLoss() (lost int64) {
	s.t.Helper()
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(s.dir, aofDir, "*.incr.aof"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no append-only file: %v", err)
	}
	file := files[len(files)-1]
	size, unwritten, err := unwrittenBytes(file)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Kill()
	lost = min(size, unwritten)
	// Only the end of an append-only file is ever unwritten.
	if err := os.Truncate(file, size-lost); err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
	return lost
}

// sysCachestat is the number of cachestat on every architecture.
const sysCachestat = 451

// unwrittenBytes are the pages of a file that are only in memory, and its size.
func unwrittenBytes(path string) (size, unwritten int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	all := struct{ offset, length uint64 }{}
	var found struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := syscall.Syscall6(sysCachestat, f.Fd(), uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&found)), 0, 0, 0)
	if errno != 0 {
		return 0, 0, fmt.Errorf("cachestat: %w", errors.Join(errno, errors.New("needs Linux 6.5")))
	}
	return info.Size(), int64(found.dirty+found.writeback) * int64(os.Getpagesize()), nil
}
