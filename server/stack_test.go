package server

import (
	"testing"
	"unsafe"
)

// The stack of a new goroutine is copied once, and then has room for what a call needs.
func TestStackGrowsOnce(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !moved(func() { growStack(false) }) {
			t.Error("the stack has not grown")
		}
		if moved(func() { deep(16) }) {
			t.Error("the stack has grown again")
		}
		if moved(func() { growStack(false) }) {
			t.Error("the stack has grown where there was room")
		}
	}()
	<-done
}

// moved reports whether a function has the stack of the goroutine copied.
func moved(f func()) bool {
	var here byte
	before := uintptr(unsafe.Pointer(&here))
	f()
	return uintptr(unsafe.Pointer(&here)) != before
}

// deep has frames of more than 300 bytes.
//
//go:noinline
func deep(frames int) byte {
	if frames == 0 {
		return 0
	}
	var room [300]byte
	room[frames] = deep(frames - 1)
	return room[frames/2]
}
