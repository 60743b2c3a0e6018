//go:build race

package rawconn

import "syscall"

// The race detector takes it from package syscall that what was written comes before what is read.

func read(fd uintptr, b []byte) (int, error) { return syscall.Read(int(fd), b) }

func write(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }
