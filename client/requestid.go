package client

import (
	"crypto/rand"
	"time"

	"github.com/google/uuid"
)

// newRequestID makes a UUIDv7 from the clock as it is now. It is not uuid.NewV7, which never goes back in
// time: after a clock that was fast is set right, its ids would stay in the future, where servers refuse
// them, until the clock has caught up.
func newRequestID() string {
	var id uuid.UUID
	_, _ = rand.Read(id[:]) // never fails: the program ends first
	ms := time.Now().UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = id[6]&0x0f | 0x70 // version 7
	id[8] = id[8]&0x3f | 0x80 // RFC 9562 variant
	return id.String()
}
