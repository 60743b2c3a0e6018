// Package failpoint names points of the program at which a test can have it die or pause. They are there in a program
// that is built with the tag failpoint; in any other, a point is no code at all.
//
// The environment variable PLUSONE_FAILPOINTS says what is to happen, such as
// "flush.begin.before=kill@3,flush.move.after=pause:500ms@1": the third time that the program is about to begin to
// finish a window it kills itself with SIGKILL, and the first time that it has moved a part of one it waits for half a
// second. Each happens once in a process, whatever goroutine gets there; the others go on. A program that does
// not understand the variable does not start.
package failpoint

// Name is a point that is no step of the flush.
type Name uint8

// Points of the ledgers and of the live store.
const (
	// ApplyCommitBefore: a window was written in a transaction, which is about to be committed.
	ApplyCommitBefore Name = iota
	// ApplyCommitAfter: the ledger has answered that the window is committed.
	ApplyCommitAfter
	// DirectCommitBefore: changes are about to be committed.
	DirectCommitBefore
	// DirectCommitAfter: the ledger has answered that they are; their callers do not know yet.
	DirectCommitAfter
	// WriteAnswered: Redis has answered a batch; its callers do not know yet.
	WriteAnswered
	// LoadBefore: bases were read from the ledger, and Redis does not have them yet.
	LoadBefore
)

var names = [...]string{
	ApplyCommitBefore:  "flush.apply.commit.before",
	ApplyCommitAfter:   "flush.apply.commit.after",
	DirectCommitBefore: "direct.commit.before",
	DirectCommitAfter:  "direct.commit.after",
	WriteAnswered:      "shard.write.answered",
	LoadBefore:         "shard.load.before",
}

// steps are those of the flush, each with a point before it, and one after it if it succeeded.
var steps = [...]string{
	"lock", "watermark", "seal", "restore", "sweep", "scan", "hold", "markers", "apply", "begin", "move", "end", "discard",
}

func before(step string) string { return "flush." + step + ".before" }

func after(step string) string { return "flush." + step + ".after" }

// Points are the names of all points.
func Points() []string {
	points := append([]string(nil), names[:]...)
	for _, step := range steps {
		points = append(points, before(step), after(step))
	}
	return points
}
