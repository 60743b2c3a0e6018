// Package deny knows actors whose changes must not count: from a file, or from a set in Redis that is read again and again.
package deny

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/plusone-dev/plusone/internal/counter"
)

const (
	// MaxActors is how many actors a file may list, at some 100 bytes of memory each.
	MaxActors = 1_000_000
	// MaxFileBytes bounds a file: MaxActors with names of common length.
	MaxFileBytes = 64 << 20
)

// Actors is a set of actors. It does not change.
type Actors map[string]struct{}

// Denied reports whether an actor is in the set.
func (a Actors) Denied(actor string) bool {
	_, denied := a[actor]
	return denied
}

// Parse reads a list: an actor a line. What follows a # is a comment if the # is the first of a line or after a space.
func Parse(data []byte) (Actors, error) {
	actors := make(Actors)
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		actor, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if actor == "" || actor[0] == '#' {
			continue
		}
		if rest = strings.TrimSpace(rest); rest != "" && rest[0] != '#' {
			return nil, fmt.Errorf("line %d: one actor a line, without spaces", n)
		}
		if !valid(actor) {
			return nil, fmt.Errorf("line %d: an actor is 1 to %d bytes of printable UTF-8 without spaces", n, counter.MaxActorBytes)
		}
		if len(actors) == MaxActors && !actors.Denied(actor) {
			return nil, fmt.Errorf("line %d: there are more than %d actors", n, MaxActors)
		}
		actors[strings.Clone(actor)] = struct{}{} // or each would hold the whole file
	}
	return actors, nil
}

func valid(actor string) bool {
	return len(actor) <= counter.MaxActorBytes && utf8.ValidString(actor) &&
		!strings.ContainsFunc(actor, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) })
}
