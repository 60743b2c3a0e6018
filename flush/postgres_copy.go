package flush

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"time"
)

const (
	// copiedRows is from how many rows on new ones are copied: with fewer, the round trips take longer than is spared.
	copiedRows = 500
	// copiedRow is about how many bytes a row has.
	copiedRow = 128
	// copyNull stands in place of a value's length.
	copyNull = math.MaxUint32
	// postgresEpoch is the Unix time in µs where timestamps of Postgres begin, the year 2000.
	postgresEpoch = 946_684_800_000_000
	// numericNegative is the sign of negative numerics.
	numericNegative = 0x4000
)

// copyRows are rows in the binary format of COPY. Each begins with row, and then has a value for each column.
type copyRows struct{ data []byte }

// newCopyRows has room for n rows.
func newCopyRows(n int) copyRows {
	// The signature, flags, and the length of more headers.
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)
	return copyRows{append(make([]byte, 0, len(header)+n*copiedRow), header...)}
}

func (r *copyRows) row(columns int) { r.data = binary.BigEndian.AppendUint16(r.data, uint16(columns)) }

func (r *copyRows) length(bytes uint32) { r.data = binary.BigEndian.AppendUint32(r.data, bytes) }

func (r *copyRows) null() { r.length(copyNull) }

func (r *copyRows) text(s string) {
	r.length(uint32(len(s)))
	r.data = append(r.data, s...)
}

func (r *copyRows) boolean(b bool) {
	r.length(1)
	value := byte(0)
	if b {
		value = 1
	}
	r.data = append(r.data, value)
}

func (r *copyRows) smallint(n int) {
	r.length(2)
	r.data = binary.BigEndian.AppendUint16(r.data, uint16(n))
}

func (r *copyRows) bigint(n int64) {
	r.length(8)
	r.data = binary.BigEndian.AppendUint64(r.data, uint64(n))
}

func (r *copyRows) timestamp(t time.Time) { r.bigint(t.UnixMicro() - postgresEpoch) }

// numeric adds an integer in digits of base 10,000.
func (r *copyRows) numeric(n int64) {
	sign, rest := uint16(0), uint64(n)
	if n < 0 {
		sign, rest = numericNegative, -rest
	}
	var buffer [5]uint16
	first := len(buffer)
	for ; rest > 0; rest /= 10_000 {
		first--
		buffer[first] = uint16(rest % 10_000)
	}
	digits := buffer[first:]
	r.length(uint32(8 + 2*len(digits)))
	// Their number, the exponent of the first, the sign, and the decimal places.
	for _, field := range [...]uint16{uint16(len(digits)), uint16(max(len(digits)-1, 0)), sign, 0} {
		r.data = binary.BigEndian.AppendUint16(r.data, field)
	}
	for _, digit := range digits {
		r.data = binary.BigEndian.AppendUint16(r.data, digit)
	}
}

// send ends the rows and runs a COPY statement with them.
func (r *copyRows) send(ctx context.Context, tx *postgresTx, sql string) error {
	r.data = binary.BigEndian.AppendUint16(r.data, math.MaxUint16)
	_, err := tx.conn.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(r.data), sql)
	return err
}
