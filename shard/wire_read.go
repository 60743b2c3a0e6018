package shard

import (
	"strconv"
	"strings"

	"github.com/redis/rueidis"
	"github.com/tinylib/msgp/msgp"
)

// What read.lua takes and answers, which it describes.

// readCounts makes the first argument of read.lua.
func readCounts(groups []KeyGroup) string {
	packed := msgp.AppendArrayHeader(make([]byte, 0, 5+3*len(groups)), uint32(len(groups)))
	for i := range groups {
		n := len(groups[i].Keys)
		if groups[i].Away {
			n = -n
		}
		packed = msgp.AppendInt(packed, n)
	}
	return rueidis.BinaryString(packed)
}

// parseReads reads the answer of read.lua.
func parseReads(result rueidis.RedisResult, groups []KeyGroup) ([]ReadReply, error) {
	answer, err := result.AsBytes()
	if err != nil {
		return nil, err
	}
	keys := 0
	for i := range groups {
		keys += len(groups[i].Keys)
	}
	d := readDecoder{left: answer}
	d.list(2 + len(groups))
	micros := d.micros()
	d.list(keys)
	replies, values, sums := make([]ReadReply, len(groups)), make([]KeyValue, keys), make([]readSums, keys)
	d.bases(values, sums)
	for i := range groups {
		n := len(groups[i].Keys)
		d.shard(values[:n], sums[:n])
		for k := range n {
			values[k].Value, values[k].Likes = sums[k].all.int64(), sums[k].likes.int64()
		}
		replies[i] = ReadReply{Micros: micros, Values: values[:n:n]}
		values, sums = values[n:], sums[n:]
	}
	if len(d.left) > 0 {
		d.fail(errAnswer)
	}
	if d.err != nil {
		return nil, d.err
	}
	return replies, nil
}

// readSums are those of a key.
type readSums struct{ all, likes sum }

// readDecoder reads an answer from its beginning to its end. After an error there is nothing left.
type readDecoder struct {
	left []byte
	err  error
}

func (d *readDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.left = nil
}

// header reads the beginning of a list and returns its length.
func (d *readDecoder) header() int {
	n, left, err := msgp.ReadArrayHeaderBytes(d.left)
	if err != nil {
		d.fail(errAnswer)
		return 0
	}
	d.left = left
	return int(n)
}

// list reads the beginning of a list of known length.
func (d *readDecoder) list(length int) {
	if d.header() != length {
		d.fail(errAnswer)
	}
}

// micros reads the time of the script.
func (d *readDecoder) micros() int64 {
	n, left, err := msgp.ReadInt64Bytes(d.left)
	if err != nil {
		d.fail(errAnswer)
		return 0
	}
	d.left = left
	return n
}

// missing reads a false, if that is what comes.
func (d *readDecoder) missing() bool {
	missing := len(d.left) > 0 && d.left[0] == packedFalse
	if missing {
		d.left = d.left[1:]
	}
	return missing
}

// packedFalse is false in MessagePack.
const packedFalse = 0xc2

func (d *readDecoder) text() []byte {
	text, left, err := msgp.ReadStringZC(d.left)
	if err != nil {
		d.fail(errAnswer)
		return nil
	}
	d.left = left
	return text
}

// number reads a decimal. It is 0 after an error.
func (d *readDecoder) number() int64 {
	text := d.text()
	if d.err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		d.fail(err)
		return 0
	}
	return n
}

// bases reads the bases of a shard's keys (lib.lua has their form).
func (d *readDecoder) bases(values []KeyValue, sums []readSums) {
	for k := range values {
		if d.missing() {
			continue
		}
		text := d.text()
		if d.err != nil {
			return
		}
		total, likes, err := parseBase(string(text))
		if err != nil {
			d.fail(err)
			return
		}
		sums[k].all.add(total)
		sums[k].likes.add(likes)
		values[k].Cached = true
	}
}

// shard reads what else a shard has of its keys.
func (d *readDecoder) shard(values []KeyValue, sums []readSums) {
	if d.missing() {
		return
	}
	windows := d.header() - 1
	if !d.missing() {
		d.list(len(values))
		for k := range values {
			if !d.missing() {
				values[k].Marker = Marker(d.number())
			}
		}
	}
	for ; windows > 0 && d.err == nil; windows-- {
		d.pending(sums[:len(values)])
	}
}

// pending reads what a window has of keys.
func (d *readDecoder) pending(sums []readSums) {
	n := d.header()
	if n != len(sums) && n != 2*len(sums) {
		d.fail(errAnswer)
		return
	}
	for k := range sums {
		if !d.missing() {
			sums[k].all.add(d.number())
		}
	}
	for k := range sums[:n-len(sums)] {
		if !d.missing() {
			sums[k].likes.add(d.number())
		}
	}
}

func parseBase(text string) (total, likes int64, err error) {
	all, part, liked := strings.Cut(text, ":")
	if total, err = strconv.ParseInt(all, 10, 64); err == nil && liked {
		likes, err = strconv.ParseInt(part, 10, 64)
	}
	return total, likes, err
}
