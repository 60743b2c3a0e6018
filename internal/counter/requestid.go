package counter

import (
	"encoding/binary"
	"time"

	"github.com/dchest/siphash"
	"github.com/google/uuid"
)

// RequestID is a caller's request id in the form in which stores keep it: a UUIDv7 as its 16 bytes,
// which carry the time it was made, and any other id as it is. The zero RequestID means none was given.
type RequestID struct {
	bytes string
	v7    bool
}

// ParseRequestID takes an id as it came over the wire; it does not validate. A UUIDv7 is recognised in its
// canonical 36-character form, whatever its case.
func ParseRequestID(text string) RequestID {
	if len(text) == 36 {
		if id, err := uuid.Parse(text); err == nil && id.Version() == 7 && id.Variant() == uuid.RFC4122 {
			return RequestID{bytes: string(id[:]), v7: true}
		}
	}
	return RequestID{bytes: text}
}

// IsZero reports whether no id was given.
func (id RequestID) IsZero() bool { return id.bytes == "" }

// Bytes is what a store keeps of the id. A UUIDv7 and another id may have the same bytes: keep them
// apart.
func (id RequestID) Bytes() string { return id.bytes }

// Time is when the id was made, in Unix milliseconds by the clock of whoever made it, and whether the id
// says so: only a UUIDv7 does.
func (id RequestID) Time() (ms int64, ok bool) {
	if !id.v7 {
		return 0, false
	}
	return int64(id.bytes[0])<<40 | int64(id.bytes[1])<<32 | int64(id.bytes[2])<<24 |
		int64(id.bytes[3])<<16 | int64(id.bytes[4])<<8 | int64(id.bytes[5]), true
}

// Derive returns an id for a part of what the request does, as old as the request. No caller can give it, and for one part
// it is always the same.
func (id RequestID) Derive(part string) RequestID {
	return RequestID{bytes: id.bytes + "\x00\x01" + part, v7: id.v7} // keys have no such character: see the claims of a batch
}

// Away is the id of the entry of a key in what the request does, where that is kept apart from the other entries.
func (id RequestID) Away(key string) RequestID {
	return RequestID{bytes: id.bytes + "\x00" + key, v7: id.v7}
}

// CheckAge returns ErrRequestIDExpired or ErrRequestIDEarly for an id that says that it was made longer ago than the dedupe
// window, or too far ahead, at the moment now of the store's clock, in Unix milliseconds.
func (id RequestID) CheckAge(now int64, dedupe time.Duration) error {
	switch made, timed := id.Time(); {
	case timed && made < now-dedupe.Milliseconds():
		return ErrRequestIDExpired
	case timed && made > now+MaxEarly.Milliseconds():
		return ErrRequestIDEarly
	default:
		return nil
	}
}

// FingerprintKey is the key of a deployment's fingerprints. It is drawn at random and stays the same, since fingerprints are kept
// with request ids. Callers must not get to know it.
type FingerprintKey [16]byte

// Fingerprint identifies what a change does, whatever the order of its entries: two changes with one
// request id and different fingerprints are a reuse of that id. Without the key nobody can make a change that has the
// fingerprint of another one, which would then be taken for its repetition and not be counted.
func (c *Change) Fingerprint(key *FingerprintKey) uint64 {
	var buf [128]byte // what is asked for most fits, and a call has little of its stack in the CPU's cache
	b := buf[:0]
	// A sum does not depend on the order. Keys are distinct, so no two entries cancel each other out.
	k0, k1 := binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])
	var entries uint64
	for i := range c.Entries {
		b = append(b[:0], c.Entries[i].Key...)
		b = binary.LittleEndian.AppendUint64(b, uint64(c.Entries[i].Delta))
		entries += siphash.Hash(k0, k1, b)
	}
	b = binary.LittleEndian.AppendUint64(b[:0], entries)
	b = binary.AppendUvarint(b, uint64(len(c.Entries)))
	if c.ImpliedOncePer {
		b = binary.AppendVarint(b, 0)
	} else {
		b = binary.AppendVarint(b, int64(c.OncePer))
	}
	b = append(b, c.Actor...)
	if c.Like != NoLike {
		b = append(b, 0xff, byte(c.Like)) // no actor has the byte 0xff
	}
	if c.Reset {
		b = append(b, 0xff, 0xff)
	}
	return siphash.Hash(k0, k1, b)
}
