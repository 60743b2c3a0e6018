package server

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// plain is a request that may be decoded by hand, for half of what the library takes, as long as it has nothing but texts and a
// number. It is where to put them.
type plain struct {
	texts  [5]*string // by the numbers of their fields
	number protowire.Number
	value  **int64 // of the field number
}

// one is the number of most requests. Nobody changes it.
var one int64 = 1

// plainOf returns the plain form of an empty request, false if it has none.
func plainOf(request any) (plain, bool) {
	switch r := request.(type) {
	case *plusonev1.IncrementRequest:
		return plain{texts: [5]*string{1: &r.Key, 3: &r.RequestId, 4: &r.Actor}, number: 2, value: &r.Delta}, true
	case *plusonev1.LikeRequest:
		return plain{texts: [5]*string{1: &r.Key, 2: &r.Actor, 3: &r.RequestId}}, true
	case *plusonev1.UnlikeRequest:
		return plain{texts: [5]*string{1: &r.Key, 2: &r.Actor, 3: &r.RequestId}}, true
	}
	return plain{}, false
}

// decode decodes a message. It is false if the message has anything else or is none, which is then for the library to decode or to
// refuse: it forgets what is here.
func (p *plain) decode(message []byte) bool {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return false
		}
		message = message[size:]
		switch {
		case kind == protowire.BytesType && number < protowire.Number(len(p.texts)) && p.texts[number] != nil:
			var text []byte
			if text, size = protowire.ConsumeBytes(message); size < 0 || !utf8.Valid(text) {
				return false
			}
			*p.texts[number] = string(text)
		case kind == protowire.VarintType && number == p.number:
			var value uint64
			if value, size = protowire.ConsumeVarint(message); size < 0 {
				return false
			}
			*p.value = &one
			if value != 1 {
				*p.value = new(int64(value))
			}
		default:
			return false
		}
		message = message[size:]
	}
	return true
}
