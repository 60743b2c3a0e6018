package server

// stackBytes does not fit into a stack of less than 8 KB, which is what a call comes to need.
const stackBytes = 4 << 10

// growStack grows the stack of a goroutine to what a call needs, by having a frame of that size. Calls outside of gRPC's stream
// workers begin with 2 KB, and a stack is grown by copying it frame by frame into one of twice the size: better early, when there
// are few, than when the request is read, at three times the depth. Where there is room, it costs nothing. What is in the frame is
// not used, and so not cleared either.
//
//go:noinline
func growStack(used bool) {
	if used {
		var room [stackBytes]byte
		touch(&room)
	}
}

//go:noinline
func touch(room *[stackBytes]byte) { room[0]++ }
