package shard

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/plusone-dev/plusone/internal/counter"
)

// The fields of a window, other than the deltas, begin with a control character, which keys and actors do not have
// (lib.lua).
const (
	markerField  = '\x01' // then the key: a spread marker
	likeField    = '\x02' // then key, NUL and actor: the state that a like was set to
	likeSumField = '\x03' // then the key: the part of its delta that is supposed to come from likes
)

// newLike ends the state of a like that is PendingLike.New.
const newLike = "+"

// fieldOf is the field of a like, in windows and in membership.
func fieldOf(p counter.Pair) string { return string(likeField) + p.Key + "\x00" + p.Actor }

// parseWindow reads names and values of a window's fields.
func parseWindow(elements []string) (WindowPart, error) {
	part := WindowPart{
		Deltas: make(map[string]int64, len(elements)/2), LikeDeltas: map[string]int64{},
		Likes: map[counter.Pair]PendingLike{}, Markers: map[string]Marker{},
	}
	if len(elements)%2 != 0 {
		return WindowPart{}, fmt.Errorf("window holds a name without a value: %w", errAnswer)
	}
	for i := 0; i < len(elements); i += 2 {
		name, value := elements[i], elements[i+1]
		if name != "" && name[0] == likeField {
			key, actor, ok := strings.Cut(name[1:], "\x00")
			like, err := parseLike(value)
			if !ok || err != nil {
				return WindowPart{}, fmt.Errorf("window holds a like that cannot be read: %w", errAnswer)
			}
			part.Likes[counter.Pair{Key: key, Actor: actor}] = like
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return WindowPart{}, fmt.Errorf("window holds a value that is no number: %w", err)
		}
		switch {
		case name != "" && name[0] == markerField:
			part.Markers[name[1:]] = Marker(n)
		case name != "" && name[0] == likeSumField:
			part.LikeDeltas[name[1:]] = n
		default:
			part.Deltas[name] = n
		}
	}
	return part, nil
}

// formatLike writes a state as like.lua does.
func formatLike(l PendingLike) string {
	text := bit(l.Liked) + strconv.FormatInt(l.Micros, 10)
	if l.Since != l.Micros {
		text += ":" + strconv.FormatInt(l.Since, 10)
	}
	if l.New {
		text += newLike
	}
	return text
}

// parseLike reads a state as like.lua writes it.
func parseLike(text string) (PendingLike, error) {
	if text == "" || text[0] != '0' && text[0] != '1' {
		return PendingLike{}, errAnswer
	}
	like := PendingLike{Liked: text[0] == '1'}
	text, like.New = strings.CutSuffix(text[1:], newLike)
	at, since, repeated := strings.Cut(text, ":")
	var err error
	if like.Micros, err = strconv.ParseInt(at, 10, 64); err != nil {
		return PendingLike{}, errAnswer
	}
	like.Since = like.Micros
	if repeated {
		if like.Since, err = strconv.ParseInt(since, 10, 64); err != nil {
			return PendingLike{}, errAnswer
		}
	}
	return like, nil
}

// moveArgs are the arguments of move.lua.
func moveArgs(window int64, m Moves) []string {
	args := make([]string, 0, 2+4*len(m.Deltas)+len(m.Markers))
	args = append(args, strconv.FormatInt(window, 10), strconv.Itoa(len(m.Deltas)))
	for _, d := range m.Deltas {
		args = append(args, d.Key, strconv.FormatInt(d.Delta, 10), strconv.FormatInt(d.Likes, 10), bit(d.Reload))
	}
	return append(args, m.Markers...)
}
