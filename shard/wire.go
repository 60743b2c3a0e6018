package shard

import (
	"errors"
	"math"
	"slices"
	"strconv"

	"github.com/redis/rueidis"
	"github.com/tinylib/msgp/msgp"

	"github.com/plusone-dev/plusone/internal/counter"
)

// What the scripts take and answer; scripts/*.lua describe it.

var errAnswer = errors.New("script answered in an unknown form")

// carefulDelta is the size from which on a delta is added with a check of its own, see lib.lua.
const carefulDelta = 1 << 52

// What write.lua calls RESET, RUN_NUMBERS, DATED, SOURCE and CHANGED.
const (
	resetDelta   = "r"
	runNumbers   = 5
	likeDated    = 2
	likeSource   = 4
	likeAsChange = string(LikeChanged)
)

// writeEncoder makes the arguments of write.lua, which describes them. Its memory is used again.
type writeEncoder struct {
	args    []string
	numbers []int64
	packed  []byte // numbers
	claims  []int  // by group of a shard: position in args of the first claim
	// Of the likes of a shard: the numbers of their keys and of the states that senders know, the position of the first of
	// each pair, and of each like that of the first of its pair, 0 if there is one like of it.
	keys   map[markedKey]int64
	states map[string]int64
	pairs  map[string]int64
	firsts []int64
}

// encode returns the arguments for a batch, valid until the next call. Settings are the numbers of all batches: lifetime,
// window length, dedupe window, early, confirm.
func (w *writeEncoder) encode(b *WriteBatch, settings [5]int64) []string {
	w.args, w.numbers = append(w.args[:0], "", b.ID), append(w.numbers[:0], b.Made)
	w.numbers = append(w.numbers, settings[:]...)
	plain := !slices.ContainsFunc(b.Shards, needsMore)
	w.numbers = append(w.numbers, asNumber(plain))
	for i := range b.Shards {
		s := &b.Shards[i]
		w.numbers = append(w.numbers, int64(len(s.Entries)), int64(s.ones()))
	}
	for i := range b.Shards {
		w.shard(&b.Shards[i], plain)
	}
	w.packed = msgp.AppendArrayHeader(w.packed[:0], uint32(len(w.numbers)))
	for _, n := range w.numbers {
		w.packed = msgp.AppendInt64(w.packed, n)
	}
	w.args[0] = string(w.packed)
	return w.args
}

// likeRun is what likes that follow each other have in common, as write.lua describes it.
type likeRun struct{ what, key, state, firstOfPair int64 }

// markedKey is a key of likes whose senders know the same marker.
type markedKey struct {
	key    string
	marker Marker
}

// ones is how many entries from the first on have a delta of 1.
func (s *ShardWrite) ones() int {
	n := 0
	for !s.Reset && n < len(s.Entries) && s.Entries[n].Delta == 1 {
		n++
	}
	return n
}

// isCareful reports whether a delta needs a check of its own.
func (s *ShardWrite) isCareful() bool {
	return s.Reset || slices.ContainsFunc(s.Entries, func(e counter.Entry) bool { return e.Delta >= carefulDelta || e.Delta <= -carefulDelta })
}

// needsMore reports whether the shard's part has more than deltas that are not big.
func needsMore(s ShardWrite) bool {
	return len(s.Claims)+len(s.Likes) > 0 || s.isCareful() || slices.ContainsFunc(s.Markers, func(m Marker) bool { return m != 0 })
}

func (w *writeEncoder) shard(s *ShardWrite, plain bool) {
	ones := s.ones()
	for _, e := range s.Entries[:ones] {
		w.args = append(w.args, e.Key)
	}
	for _, e := range s.Entries[ones:] {
		delta := resetDelta
		if !s.Reset {
			delta = strconv.FormatInt(e.Delta, 10)
		}
		w.args = append(w.args, e.Key, delta)
	}
	if plain {
		return
	}
	declared := 0
	for _, m := range s.Markers {
		if m != 0 {
			declared++
		}
	}
	w.numbers = append(w.numbers, asNumber(s.isCareful()), int64(declared), int64(len(s.Claims)), 0, int64(len(s.Likes)))
	keys := len(w.numbers) - 2
	for i, m := range s.Markers {
		if m != 0 {
			w.numbers, w.args = append(w.numbers, int64(i)+1), append(w.args, m.String())
		}
	}
	w.claims = w.claims[:0]
	for i := range s.Claims {
		w.group(&s.Claims[i])
	}
	if len(s.Likes) > 0 {
		w.numbers[keys] = int64(w.likes(s.Likes))
	}
}

func (w *writeEncoder) group(g *ClaimGroup) {
	w.numbers = append(w.numbers, int64(g.Kind), g.Oldest, g.Newest, g.Period, asNumber(g.Current), int64(len(g.Fields)))
	w.args = append(w.args, strconv.FormatInt(g.Bucket, 10))
	w.claims = append(w.claims, len(w.args))
	for i := range g.Fields {
		w.args = append(w.args, g.Fields[i], g.Values[i])
	}
}

// likes adds a shard's likes and returns how many keys they have.
func (w *writeEncoder) likes(likes []LikeWrite) int {
	if w.keys == nil {
		w.keys, w.states, w.pairs = map[markedKey]int64{}, map[string]int64{}, make(map[string]int64, len(likes))
	}
	clear(w.keys)
	clear(w.states)
	var markers []string
	for i := range likes {
		key := markedKey{likes[i].Key, likes[i].Marker}
		if _, there := w.keys[key]; !there {
			w.keys[key] = int64(len(w.keys)) + 1
			w.args, markers = append(w.args, key.key), append(markers, key.marker.String())
		}
	}
	w.args = append(w.args, markers...)
	w.fields(likes)
	first := len(w.numbers)
	w.numbers = append(w.numbers, 0, 0)
	var runs int64
	var run likeRun
	for i := range likes {
		next := w.run(likes, i, run.state)
		if last := len(w.numbers) - 1; i > 0 && run == next && next.firstOfPair == 0 && likes[i].At == 0 {
			w.numbers[last]++
			continue
		}
		run, runs = next, runs+1
		w.numbers = append(w.numbers, run.what, run.key, run.state, run.firstOfPair, 1)
	}
	w.numbers[first], w.numbers[first+1] = runs, int64(len(w.states))
	for i := range likes {
		claim := int64(0)
		if l := &likes[i]; l.Group >= 0 {
			at := w.claims[l.Group] + 2*l.Field
			w.args[at+1] += likeAsChange
			claim = int64(at) + 1
		}
		w.numbers = append(w.numbers, claim)
	}
	return len(w.keys)
}

// fields adds the fields of likes, and notes which are of one pair.
func (w *writeEncoder) fields(likes []LikeWrite) {
	clear(w.pairs)
	w.firsts = append(w.firsts[:0], make([]int64, len(likes))...)
	for i := range likes {
		field := fieldOf(likes[i].Pair)
		w.args = append(w.args, field)
		if first, again := w.pairs[field]; again {
			w.firsts[first-1], w.firsts[i] = first, first
		} else {
			w.pairs[field] = int64(i) + 1
		}
	}
}

// run is that of the like at a position. It adds what the sender knows, unless that is there, as it is if the like before, of
// which the state has the number last, is known to be the same.
func (w *writeEncoder) run(likes []LikeWrite, i int, last int64) likeRun {
	l := &likes[i]
	r := likeRun{
		what: asNumber(l.Liked) + likeSource*int64(l.Known.Source), key: w.keys[markedKey{l.Key, l.Marker}], firstOfPair: w.firsts[i],
	}
	if i > 0 && l.Known == likes[i-1].Known && l.At == 0 && likes[i-1].At == 0 {
		r.state = last
		return r
	}
	known := ""
	if l.Known.Source == LikeLoaded {
		known = formatLike(l.Known.PendingLike) + "@" + strconv.FormatInt(l.Known.Watermark, 10)
	}
	if l.At != 0 {
		r.what += likeDated
		known += ">" + strconv.FormatInt(l.At, 10)
	}
	if known == "" {
		return r
	}
	if r.state = w.states[known]; r.state == 0 {
		r.state = int64(len(w.states)) + 1
		w.states[known] = r.state
		w.args = append(w.args, known)
	}
	return r
}

func asNumber(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// replyParts is how many parts the answer to a batch has, by its status.
var replyParts = [...]int{WriteApplied: 3, WriteRefused: 6, WriteLate: 2}

// parseWriteReply reads the answer to a batch. What is acknowledged or refused by it was really said, and of this batch.
func parseWriteReply(result rueidis.RedisResult, b *WriteBatch) (WriteReply, error) {
	parts, err := result.ToArray()
	if err != nil {
		return WriteReply{}, err
	}
	if len(parts) < 2 {
		return WriteReply{}, errAnswer
	}
	status, err := parts[0].AsInt64()
	if err != nil {
		return WriteReply{}, err
	}
	if status < int64(WriteApplied) || status > int64(WriteLate) || len(parts) != replyParts[status] {
		return WriteReply{}, errAnswer
	}
	reply := WriteReply{Status: WriteStatus(status)}
	if reply.Micros, err = parts[1].AsInt64(); err != nil {
		return reply, err
	}
	switch reply.Status {
	case WriteApplied:
		likes, err := parts[2].ToString()
		reply.Likes = []LikeResult(likes)
		return reply, err
	case WriteLate:
		return reply, nil
	case WriteRefused:
	}
	err = errors.Join(
		eachRow(parts[2], 4, func(n []int64, last string) {
			reply.Known = append(reply.Known, KnownClaim{Shard: int(n[0]), Group: int(n[1]), Field: int(n[2]), Value: last})
		}),
		eachRow(parts[3], 3, func(n []int64, last string) {
			marker, _ := strconv.ParseInt(last, 10, 64) // written by spread.lua and load.lua
			reply.Moved = append(reply.Moved, MovedEntry{EntryRef{int(n[0]), int(n[1])}, Marker(marker)})
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
	if err == nil && !reply.refuses(b) {
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
	return values, eachNumber(parts[1], pairs, func(i int, n int64) { values[i].Marker = Marker(n) })
}

// parseHomeReply reads what homes.lua answers for one home.
func parseHomeReply(message rueidis.RedisMessage, keys int) (HomeReply, error) {
	parts, err := message.ToArray()
	if err != nil {
		return HomeReply{}, err
	}
	if len(parts) != 2 {
		return HomeReply{}, errAnswer
	}
	reply := HomeReply{Marked: math.MaxInt64, Markers: make([]Marker, keys)}
	if !parts[0].IsNil() {
		if reply.Marked, err = parts[0].AsInt64(); err != nil {
			return HomeReply{}, err
		}
	}
	return reply, eachNumber(parts[1], keys, func(i int, n int64) { reply.Markers[i] = Marker(n) })
}
