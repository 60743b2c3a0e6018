package shard

import (
	"errors"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// What the scripts take and answer; scripts/*.lua describe it.

var errAnswer = errors.New("script answered in an unknown form")

// writeArgs is at least how many arguments a batch takes.
func writeArgs(b *WriteBatch) int {
	n := 7
	for i := range b.Shards {
		n += 5 + 4*len(b.Shards[i].Entries) + likeColumns*len(b.Shards[i].Likes)
		for j := range b.Shards[i].Claims {
			n += 7 + 2*len(b.Shards[i].Claims[j].Fields)
		}
	}
	return n
}

// carefulDelta is the size from which on a delta is added with a check of its own, see lib.lua.
const carefulDelta = 1 << 52

// resetDelta is the delta of a reset (RESET in write.lua).
const resetDelta = "r"

func appendShardWrites(args []string, shards []ShardWrite) []string {
	for i := range shards {
		s := &shards[i]
		careful := "0"
		if s.Reset {
			careful = "1"
		}
		for _, e := range s.Entries {
			if e.Delta >= carefulDelta || e.Delta <= -carefulDelta {
				careful = "1"
			}
		}
		args = append(args, careful, strconv.Itoa(len(s.Entries)))
		for _, e := range s.Entries {
			delta := resetDelta
			if !s.Reset {
				delta = strconv.FormatInt(e.Delta, 10)
			}
			args = append(args, e.Key, delta)
		}
		declared := 0
		for _, m := range s.Markers {
			if m != 0 {
				declared++
			}
		}
		args = append(args, strconv.Itoa(declared))
		for j, m := range s.Markers {
			if m != 0 {
				args = append(args, strconv.Itoa(j), strconv.FormatInt(m, 10))
			}
		}
		args = append(args, strconv.Itoa(len(s.Claims)))
		for j := range s.Claims {
			args = appendClaims(args, &s.Claims[j])
		}
		args = appendLikes(args, s)
	}
	return args
}

// likeColumns is how many arguments a like takes (LIKE_COLUMNS in write.lua).
const likeColumns = 4

// dated is what a like's first byte is more if it has a moment (DATED in write.lua).
const dated = 2

// appendLikes adds a shard's likes.
func appendLikes(args []string, s *ShardWrite) []string {
	args = append(args, strconv.Itoa(len(s.Likes)))
	for i := range s.Likes {
		l := &s.Likes[i]
		what := bit(l.Liked)
		if l.At != 0 {
			what = string(what[0] + dated)
		}
		what += strconv.Itoa(int(l.Known.Source))
		if l.Marker != 0 {
			what += strconv.FormatInt(l.Marker, 10)
		}
		claim, known := "", ""
		if l.Group >= 0 {
			// Claims are numbered through all groups.
			at := l.Field
			for g := range l.Group {
				at += len(s.Claims[g].Fields)
			}
			claim = strconv.Itoa(at)
		}
		if l.Known.Source == LikeLoaded {
			known = formatLike(l.Known.PendingLike) + "@" + strconv.FormatInt(l.Known.Watermark, 10)
		}
		if l.At != 0 {
			known += ">" + strconv.FormatInt(l.At, 10)
		}
		args = append(args, fieldOf(l.Pair), what, claim, known)
	}
	return args
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func appendClaims(args []string, g *ClaimGroup) []string {
	args = append(args, strconv.Itoa(int(g.Kind)), strconv.FormatInt(g.Bucket, 10), strconv.FormatInt(g.Oldest, 10),
		strconv.FormatInt(g.Newest, 10), strconv.FormatInt(g.Period, 10), bit(g.Current), strconv.Itoa(len(g.Fields)))
	for i := range g.Fields {
		args = append(args, g.Fields[i], g.Values[i])
	}
	return args
}

// parseWriteReply reads the answer to a batch. What is acknowledged or refused by it was really said, and of this batch.
func parseWriteReply(result rueidis.RedisResult, b *WriteBatch) (WriteReply, error) {
	parts, err := result.ToArray()
	if err != nil {
		return WriteReply{}, err
	}
	if len(parts) != 7 {
		return WriteReply{}, errAnswer
	}
	status, err := parts[0].AsInt64()
	if err != nil {
		return WriteReply{}, err
	}
	if status < int64(WriteApplied) || status > int64(WriteLate) {
		return WriteReply{}, errAnswer
	}
	reply := WriteReply{Status: WriteStatus(status)}
	if reply.Micros, err = parts[1].AsInt64(); err != nil {
		return reply, err
	}
	if reply.Status == WriteApplied {
		likes, err := parts[6].ToString()
		reply.Likes = []LikeResult(likes)
		return reply, err
	}
	err = errors.Join(
		eachRow(parts[2], 4, func(n []int64, last string) {
			reply.Known = append(reply.Known, KnownClaim{Shard: int(n[0]), Group: int(n[1]), Field: int(n[2]), Value: last})
		}),
		eachRow(parts[3], 3, func(n []int64, last string) {
			marker, _ := strconv.ParseInt(last, 10, 64) // written by spread.lua and load.lua
			reply.Moved = append(reply.Moved, MovedEntry{EntryRef{int(n[0]), int(n[1])}, marker})
		}),
		eachRow(parts[4], 3, func(n []int64, last string) {
			lost, _ := strconv.ParseInt(last, 10, 64)
			reply.Aged = append(reply.Aged, AgedGroup{Shard: int(n[0]), Group: int(n[1]), Lost: lost})
		}),
		eachRow(parts[5], 2, func(n []int64, last string) {
			entry, _ := strconv.Atoi(last)
			reply.Overflowing = append(reply.Overflowing, EntryRef{int(n[0]), entry})
		}),
	)
	if err == nil && reply.Status == WriteRefused && !reply.refuses(b) {
		err = errAnswer
	}
	return reply, err
}

// refuses reports whether the reply has a reason, and all of its reasons are about something in the batch.
func (r *WriteReply) refuses(b *WriteBatch) bool {
	part := func(i int) ShardWrite {
		if i < 0 || i >= len(b.Shards) {
			return ShardWrite{}
		}
		return b.Shards[i]
	}
	claims := func(shard, group int) int {
		if s := part(shard); 0 <= group && group < len(s.Claims) {
			return len(s.Claims[group].Fields)
		}
		return 0
	}
	isEntry := func(ref EntryRef) bool {
		s := part(ref.Shard)
		return 0 <= ref.Entry && ref.Entry < len(s.Entries)+len(s.Likes)
	}
	ok := len(r.Known)+len(r.Moved)+len(r.Aged)+len(r.Overflowing) > 0
	for _, k := range r.Known {
		ok = ok && 0 <= k.Field && k.Field < claims(k.Shard, k.Group)
	}
	for _, m := range r.Moved {
		ok = ok && isEntry(m.EntryRef)
	}
	for _, a := range r.Aged {
		ok = ok && claims(a.Shard, a.Group) > 0
	}
	for _, ref := range r.Overflowing {
		ok = ok && isEntry(ref)
	}
	return ok
}

// eachRow calls f for each row of a flat list: all columns but the last are integers.
func eachRow(list rueidis.RedisMessage, columns int, f func(n []int64, last string)) error {
	cells, err := list.ToArray()
	if err != nil {
		return err
	}
	if len(cells)%columns != 0 {
		return errAnswer
	}
	n := make([]int64, columns-1)
	for ; len(cells) > 0; cells = cells[columns:] {
		for i := range n {
			if n[i], err = cells[i].AsInt64(); err != nil {
				return err
			}
		}
		last := cells[columns-1]
		if last.IsInt64() {
			v, err := last.AsInt64()
			if err != nil {
				return err
			}
			f(n, strconv.FormatInt(v, 10))
			continue
		}
		v, err := last.ToString()
		if err != nil {
			return err
		}
		f(n, v)
	}
	return nil
}

func parseReadReply(message rueidis.RedisMessage, keys int) (ReadReply, error) {
	parts, err := message.ToArray()
	if err != nil {
		return ReadReply{}, err
	}
	if len(parts) < 4 {
		return ReadReply{}, errAnswer
	}
	reply := ReadReply{Values: make([]KeyValue, keys)}
	if reply.Micros, err = parts[0].AsInt64(); err != nil {
		return ReadReply{}, err
	}
	sums, likes := make([]sum, keys), make([]sum, keys)
	if err = eachBase(parts[1], keys, func(i int, total, fromLikes int64) {
		sums[i].add(total)
		likes[i].add(fromLikes)
		reply.Values[i].Cached = true
	}); err != nil {
		return ReadReply{}, err
	}
	if markers, err := parts[2].ToArray(); err != nil {
		return ReadReply{}, err
	} else if len(markers) > 0 {
		if err = eachNumber(parts[2], keys, func(i int, n int64) { reply.Values[i].Marker = n }); err != nil {
			return ReadReply{}, err
		}
	}
	windows, err := parts[3].ToArray()
	if err != nil {
		return ReadReply{}, err
	}
	for _, window := range windows {
		if err = eachNumber(window, keys, func(i int, n int64) { likes[i].add(n) }); err != nil {
			return ReadReply{}, err
		}
	}
	for _, window := range parts[4:] {
		if err = eachNumber(window, keys, func(i int, n int64) { sums[i].add(n) }); err != nil {
			return ReadReply{}, err
		}
	}
	for i := range sums {
		reply.Values[i].Value, reply.Values[i].Likes = sums[i].int64(), likes[i].int64()
	}
	return reply, nil
}

// eachBase calls f for each base of a list that is cached (lib.lua has the form).
func eachBase(list rueidis.RedisMessage, length int, f func(i int, total, likes int64)) error {
	return eachCell(list, length, func(i int, cell *rueidis.RedisMessage) error {
		text, err := cell.ToString()
		if err != nil {
			return err
		}
		total, likes, err := parseBase(text)
		if err == nil {
			f(i, total, likes)
		}
		return err
	})
}

func parseBase(text string) (total, likes int64, err error) {
	all, part, liked := strings.Cut(text, ":")
	if total, err = strconv.ParseInt(all, 10, 64); err == nil && liked {
		likes, err = strconv.ParseInt(part, 10, 64)
	}
	return total, likes, err
}

// eachNumber calls f for each element of a list that is not nil.
func eachNumber(list rueidis.RedisMessage, length int, f func(i int, n int64)) error {
	return eachCell(list, length, func(i int, cell *rueidis.RedisMessage) error {
		n, err := cell.AsInt64()
		if err == nil {
			f(i, n)
		}
		return err
	})
}

// eachCell calls f for each element of a list that is not nil, until it fails.
func eachCell(list rueidis.RedisMessage, length int, f func(i int, cell *rueidis.RedisMessage) error) error {
	cells, err := list.ToArray()
	if err != nil {
		return err
	}
	if len(cells) != length {
		return errAnswer
	}
	for i := range cells {
		if cells[i].IsNil() {
			continue
		}
		if err := f(i, &cells[i]); err != nil {
			return err
		}
	}
	return nil
}

// parsePairs reads what likes.lua answers for one shard: states, and the markers of their keys.
func parsePairs(message rueidis.RedisMessage, pairs int) ([]PairValue, error) {
	parts, err := message.ToArray()
	if err != nil {
		return nil, err
	}
	if len(parts) != 2 {
		return nil, errAnswer
	}
	states, err := parts[0].AsStrSlice()
	if err != nil {
		return nil, err
	}
	if len(states) != pairs {
		return nil, errAnswer
	}
	values := make([]PairValue, pairs)
	for i, text := range states {
		if text == "" {
			continue
		}
		like, err := parseLike(text)
		if err != nil {
			return nil, err
		}
		values[i] = PairValue{Known: true, PendingLike: like}
	}
	if markers, err := parts[1].ToArray(); err != nil || len(markers) == 0 {
		return values, err
	}
	return values, eachNumber(parts[1], pairs, func(i int, n int64) { values[i].Marker = n })
}
