package server

import (
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/plusone-dev/plusone/internal/counter"
)

// list is a kind of list. Its number is part of page tokens: it never changes.
type list byte

const (
	likersOfKey  list = 1
	likedByActor list = 2
)

// maxNameBytes bounds the names in a list.
func (l list) maxNameBytes() int {
	if l == likersOfKey {
		return counter.MaxActorBytes
	}
	return counter.MaxKeyBytes
}

// cursor is the place right behind a like.
func (l list) cursor(like counter.Liked) counter.LikeCursor {
	if l == likersOfKey {
		return counter.LikeCursor{At: like.At, Name: like.Actor}
	}
	return counter.LikeCursor{At: like.At, Name: like.Key}
}

// A page token is base64url of
//
//	version     1 byte
//	checksum    8 bytes, over the kind of list, whose list it is, and the cursor
//	cursor.At   8 bytes, in Unix microseconds
//	cursor.Name the rest
//
// It is a place in one list, the same on all servers, and for as long as the list is. The checksum tells a token
// of another list and a damaged one. It is not secret: who has it may see the like that it is behind, so none is made of a
// like that its reader may not see; and who makes a token up reads his list from a place of his own choice.
const (
	tokenVersion     = 1
	tokenHeaderBytes = 1 + 8 + 8
	// maxTokenMicros is the end of the year 9999, up to which timestamps are valid.
	maxTokenMicros = 253_402_300_800_000_000 - 1
)

// pageToken makes the token of the page behind a cursor in the list of a key or an actor.
func pageToken(l list, of string, cursor counter.LikeCursor) string {
	micros := uint64(cursor.At.UnixMicro())
	// Length-prefixed, so that no two places have the same bytes.
	sum := []byte{byte(l)}
	sum = binary.AppendUvarint(sum, uint64(len(of)))
	sum = append(sum, of...)
	sum = binary.BigEndian.AppendUint64(sum, micros)
	sum = append(sum, cursor.Name...)

	token := []byte{tokenVersion}
	token = binary.BigEndian.AppendUint64(token, xxhash.Sum64(sum))
	token = binary.BigEndian.AppendUint64(token, micros)
	token = append(token, cursor.Name...)
	return base64.RawURLEncoding.EncodeToString(token)
}

// parsePageToken returns the cursor of a token made by pageToken for the same list, and whether it is one. The
// cursor's name is then valid, and its moment one that a timestamp can tell.
func parsePageToken(l list, of, token string) (counter.LikeCursor, bool) {
	if len(token) > base64.RawURLEncoding.EncodedLen(tokenHeaderBytes+l.maxNameBytes()) {
		return counter.LikeCursor{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) < tokenHeaderBytes {
		return counter.LikeCursor{}, false
	}
	micros := binary.BigEndian.Uint64(raw[tokenHeaderBytes-8:])
	cursor := counter.LikeCursor{At: time.UnixMicro(int64(micros)), Name: string(raw[tokenHeaderBytes:])}
	ok := micros <= maxTokenMicros && textProblem(cursor.Name, l.maxNameBytes()) == "" &&
		token == pageToken(l, of, cursor) // the version, the checksum and the spelling at once
	if !ok {
		return counter.LikeCursor{}, false
	}
	return cursor, true
}
