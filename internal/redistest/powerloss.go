package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

// PowerLoss is a Kill after which the append-only file has only what had reached the disk, as if the machine had lost its
// power, and a start with that. It returns how many bytes the file has lost: those of the pages that the system had not
// written yet. That needs Linux 6.5 or later and the folder for temporary files on a disk; in memory nothing is lost.
func (s *Server) PowerLoss() (lost int64) {
	s.t.Helper()
	// Nothing is written any more while the pages are looked at.
	s.Stop()
	files, err := filepath.Glob(filepath.Join(s.dir, aofDir, "*.incr.aof"))
	if err != nil || len(files) != 1 {
		s.t.Fatalf("append-only files: %q, %v", files, err)
	}
	size, unwritten, err := unwrittenBytes(files[0])
	if err != nil {
		s.t.Fatal(err)
	}
	s.Kill()
	// Of a file that only grows they are the end.
	lost = min(size, unwritten)
	if err := os.Truncate(files[0], size-lost); err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
	return lost
}

// sysCachestat is the number of cachestat(2), the same on every architecture.
const sysCachestat = 451

// unwrittenBytes are the size of a file and that of its pages that are only in memory.
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
	var whole struct{ offset, length uint64 } // a length of 0 is up to the end
	var pages struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := syscall.Syscall6(sysCachestat, f.Fd(), uintptr(unsafe.Pointer(&whole)), uintptr(unsafe.Pointer(&pages)), 0, 0, 0)
	if errno != 0 {
		return 0, 0, fmt.Errorf("cachestat, which Linux has since 6.5: %w", errno)
	}
	return info.Size(), int64(pages.dirty+pages.writeback) * int64(os.Getpagesize()), nil
}
