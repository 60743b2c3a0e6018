package shard

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzLikeState wants each state that can be written to be read as it was, and what is read to be one that can be
// written.
func FuzzLikeState(f *testing.F) {
	for _, text := range []string{"", "1", "1:", "117", "017:5", "117:17", "?17", "1-9223372036854775808:9223372036854775807", "117:5:3"} {
		f.Add(text, true, int64(17), int64(5))
	}
	f.Fuzz(func(t *testing.T, text string, liked bool, micros, since int64) {
		want := PendingLike{Liked: liked, Micros: micros, Since: since}
		if got, err := parseLike(formatLike(want)); err != nil || got != want {
			t.Errorf("%+v, written as %q, was read as %+v, %v", want, formatLike(want), got, err)
		}
		read, err := parseLike(text)
		if err != nil {
			return
		}
		if again, err := parseLike(formatLike(read)); err != nil || again != read || bit(read.Liked) != text[:1] {
			t.Errorf("%q was read as %+v, which was read as %+v, %v", text, read, again, err)
		}
	})
}

// FuzzWindow reads fields of a window: those of one change of each kind, as they are written, and then whatever
// follows.
func FuzzWindow(f *testing.F) {
	f.Add("key", "actor", int64(5), "other", "7")
	f.Add("", "", int64(math.MinInt64), "\x02key\x00actor", "117:5")
	f.Add("k", "a", int64(0), "\x02no actor", "117")
	f.Add("k", "a", int64(0), "\x02k\x00a", "?17")
	f.Add("k", "a", int64(0), "\x01k", "not a number")
	f.Add("k", "a", int64(0), "\x03", "+1")
	f.Fuzz(func(t *testing.T, key, actor string, n int64, name, value string) {
		pair := counter.Pair{Key: key, Actor: actor}
		// Keys and actors have no control characters.
		if slices.ContainsFunc([]byte(key+actor), func(c byte) bool { return c < ' ' }) {
			return
		}
		state, number := PendingLike{Liked: n%2 == 0, Micros: n, Since: n / 2}, strconv.FormatInt(n, 10)
		fields := []string{
			key, number, string(likeSumField) + key, number, string(markerField) + key, number, fieldOf(pair), formatLike(state),
		}
		part, err := parseWindow(fields)
		want := WindowPart{
			Deltas: map[string]int64{key: n}, LikeDeltas: map[string]int64{key: n},
			Likes: map[counter.Pair]PendingLike{pair: state}, Markers: map[string]int64{key: n},
		}
		if err != nil || !reflect.DeepEqual(part, want) {
			t.Errorf("%q was read as %+v, %v", fields, part, err)
		}
		fields = append(fields, name, value)
		if part, err = parseWindow(fields); err == nil {
			checkWindow(t, fields, part)
		}
		if _, err := parseWindow(fields[1:]); err == nil {
			t.Errorf("%q was read, where one is missing", fields[1:])
		}
	})
}

// checkWindow wants a window to be what its fields say, the last of a name, and nothing to be left out.
func checkWindow(t *testing.T, fields []string, part WindowPart) {
	t.Helper()
	last := map[string]string{}
	for i := 0; i+1 < len(fields); i += 2 {
		last[fields[i]] = fields[i+1]
	}
	got := map[string]string{}
	for key, n := range part.Deltas {
		got[key] = strconv.FormatInt(n, 10)
	}
	for key, n := range part.LikeDeltas {
		got["\x03"+key] = strconv.FormatInt(n, 10)
	}
	for key, n := range part.Markers {
		got["\x01"+key] = strconv.FormatInt(n, 10)
	}
	for pair, like := range part.Likes {
		got["\x02"+pair.Key+"\x00"+pair.Actor] = formatLike(like)
	}
	for name, value := range last {
		// Numbers may be written in several ways.
		want := value
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			want = strconv.FormatInt(n, 10)
		}
		if like, err := parseLike(value); err == nil && name != "" && name[0] == likeField {
			want = formatLike(like)
		}
		if got[name] != want {
			t.Errorf("field %q of %q is %q, and was read as %q", name, fields, value, got[name])
		}
	}
	if len(got) != len(last) || len(fields)%2 != 0 {
		t.Errorf("%q was read as %+v", fields, part)
	}
}

// FuzzClaims wants the claims of two changes to be the same only if the changes are, and what is kept with one to be
// known again by its own change alone.
func FuzzClaims(f *testing.F) {
	const timed = "0190b5f0-1111-7111-8111-1111111111ff"
	f.Add("id", "", "a", int64(1), "id", "", "a", int64(1))
	f.Add("id", "", "a", int64(1), "id", "", "a", int64(2))
	f.Add("id", "k", "a", int64(1), "id", "", "a", int64(1))
	f.Add(timed, "k", "a", int64(1), strings.ToUpper(timed), "k", "a", int64(1))
	f.Add(timed, "k", "ab", int64(1), "\x01\x90\xb5\xf0\x11\x11\x71\x11\x81\x11\x11\x11\x11\x11\x11\xff", "k", "a", int64(-1))
	f.Fuzz(func(t *testing.T, id, away, key string, delta int64, otherID, otherAway, otherKey string, otherDelta int64) {
		change := func(id, key string, delta int64) *counter.Change {
			return &counter.Change{RequestID: counter.ParseRequestID(id), Entries: []counter.Entry{{Key: key, Delta: delta}}}
		}
		if id == "" || otherID == "" {
			return // no claim
		}
		// Keys have no NUL, and neither have ids without a time.
		for _, text := range []string{id, away, otherID, otherAway} {
			if strings.Contains(text, "\x00") {
				return
			}
		}
		one, other := change(id, key, delta), change(otherID, otherKey, otherDelta)
		a, b := idClaim(one, away, fingerprintOf(one)), idClaim(other, otherAway, fingerprintOf(other))
		sameClaim := one.RequestID == other.RequestID && away == otherAway
		if (a.ref() == b.ref()) != sameClaim {
			t.Errorf("%q away %q and %q away %q have the claims %+v and %+v", id, away, otherID, otherAway, a, b)
		}
		same := key == otherKey && delta == otherDelta
		if _, known := a.repeated(b.value, counter.NoLike); known != same {
			t.Errorf("%+v and %+v are one change: %v", one, other, known)
		}
		// write.lua keeps with the id of a like what became of it.
		for result, want := range map[LikeResult]bool{LikeChanged: true, LikeUnchanged: false} {
			changed, known := a.repeated(b.value+string(rune(result)), counter.SetLiked)
			if changed != want || known != same {
				t.Errorf("%+v and %+v are one change: %v, with the answer %v", one, other, known, changed)
			}
		}
	})
}

// FuzzWriteArgs reads the arguments of batches as write.lua does: what it reads is what was sent.
func FuzzWriteArgs(f *testing.F) {
	AddChance(f, 8, 100)
	f.Fuzz(Chance(func(t *testing.T, rt *rapid.T) {
		shards := rapid.SliceOfN(anyShardWrite, 1, 3).Draw(rt, "shards")
		args := appendShardWrites(nil, shards)
		if most := writeArgs(&WriteBatch{Shards: shards}); len(args) > most {
			t.Errorf("%d arguments, at most %d are expected", len(args), most)
		}
		r := &argReader{args: args}
		for i, want := range shards {
			if got := r.shard(t, len(want.Entries)); !reflect.DeepEqual(got, normal(want)) {
				t.Errorf("shard %d was sent as\n%+v\nand read as\n%+v\nfrom %q", i, normal(want), got, args)
			}
		}
		if len(r.args) > 0 {
			t.Errorf("%q was left over of %q", r.args, args)
		}
	}))
}

var (
	anyText       = rapid.SampledFrom([]string{"a", "b", "k/1", "é", "7", ""})
	anyNumber     = rapid.OneOf(rapid.Int64(), rapid.Int64Range(-2, 2), rapid.SampledFrom([]int64{carefulDelta, carefulDelta - 1, -carefulDelta, 1 - carefulDelta}))
	anyClaimGroup = rapid.Custom(func(t *rapid.T) ClaimGroup {
		g := ClaimGroup{
			Kind: ClaimKind(rapid.IntRange(0, 2).Draw(t, "kind")), Bucket: anyNumber.Draw(t, "bucket"), Oldest: anyNumber.Draw(t, "oldest"),
			Newest: anyNumber.Draw(t, "newest"), Period: anyNumber.Draw(t, "period"), Current: rapid.Bool().Draw(t, "current"),
		}
		for range rapid.IntRange(1, 3).Draw(t, "fields") {
			g.Fields, g.Values = append(g.Fields, anyText.Draw(t, "field")), append(g.Values, anyText.Draw(t, "value"))
		}
		return g
	})
	anyShardWrite = rapid.Custom(func(t *rapid.T) ShardWrite {
		var s ShardWrite
		for range rapid.IntRange(0, 3).Draw(t, "entries") {
			s.Entries = append(s.Entries, counter.Entry{Key: anyText.Draw(t, "key"), Delta: anyNumber.Draw(t, "delta")})
			s.Markers = append(s.Markers, rapid.Int64Range(0, 2).Draw(t, "marker"))
		}
		s.Claims = rapid.SliceOfN(anyClaimGroup, 0, 2).Draw(t, "claims")
		for range rapid.IntRange(0, 3).Draw(t, "likes") {
			l := LikeWrite{
				Pair: counter.Pair{Key: anyText.Draw(t, "key"), Actor: anyText.Draw(t, "actor")}, Liked: rapid.Bool().Draw(t, "liked"),
				Marker: rapid.Int64Range(0, math.MaxInt64).Draw(t, "marker"), Group: rapid.IntRange(-1, len(s.Claims)-1).Draw(t, "group"),
			}
			if l.Group >= 0 {
				l.Field = rapid.IntRange(0, len(s.Claims[l.Group].Fields)-1).Draw(t, "field")
			}
			l.Known.Source = LikeSource(rapid.IntRange(0, 2).Draw(t, "source"))
			if l.Known.Source == LikeLoaded {
				l.Known.Watermark = rapid.Int64Range(0, math.MaxInt64).Draw(t, "watermark")
				l.Known.PendingLike = PendingLike{rapid.Bool().Draw(t, "was"), anyNumber.Draw(t, "micros"), anyNumber.Draw(t, "since")}
			}
			s.Likes = append(s.Likes, l)
		}
		return s
	})
)

// normal is a part without the difference between nil and empty.
func normal(s ShardWrite) ShardWrite {
	return ShardWrite{
		Entries: append([]counter.Entry{}, s.Entries...), Markers: append([]int64{}, s.Markers...),
		Claims: append([]ClaimGroup{}, s.Claims...), Likes: append([]LikeWrite{}, s.Likes...),
	}
}

// argReader takes arguments off a list, as write.lua describes it.
type argReader struct{ args []string }

func (r *argReader) text() string {
	arg := r.args[0]
	r.args = r.args[1:]
	return arg
}

func (r *argReader) int64(t *testing.T) int64 {
	t.Helper()
	n, err := strconv.ParseInt(r.text(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (r *argReader) shard(t *testing.T, entries int) ShardWrite {
	t.Helper()
	s := normal(ShardWrite{Markers: make([]int64, entries)})
	careful := r.text() == "1"
	big := false
	for range r.int64(t) {
		e := counter.Entry{Key: r.text(), Delta: r.int64(t)}
		s.Entries = append(s.Entries, e)
		big = big || math.Abs(float64(e.Delta)) >= carefulDelta
	}
	if careful != big {
		t.Errorf("careful is %v for %v", careful, s.Entries)
	}
	for range r.int64(t) {
		at := r.int64(t)
		s.Markers[at] = r.int64(t)
	}
	type place struct{ group, field int }
	var places []place // of claims, numbered through all groups
	for g := range int(r.int64(t)) {
		group := ClaimGroup{
			Kind: ClaimKind(r.int64(t)), Bucket: r.int64(t), Oldest: r.int64(t), Newest: r.int64(t), Period: r.int64(t), Current: r.text() == "1",
		}
		for i := range int(r.int64(t)) {
			group.Fields, group.Values = append(group.Fields, r.text()), append(group.Values, r.text())
			places = append(places, place{g, i})
		}
		s.Claims = append(s.Claims, group)
	}
	for range r.int64(t) {
		s.Likes = append(s.Likes, r.like(t, func(claim int) (group, field int) { return places[claim].group, places[claim].field }))
	}
	return s
}

func (r *argReader) like(t *testing.T, placeOf func(claim int) (group, field int)) LikeWrite {
	t.Helper()
	l := LikeWrite{Group: -1}
	l.Key, l.Actor, _ = strings.Cut(r.text()[1:], "\x00")
	what := r.text()
	l.Liked, l.Known.Source = what[0] == '1', LikeSource(what[1]-'0')
	if what = what[2:]; what != "" {
		l.Marker = (&argReader{[]string{what}}).int64(t)
	}
	if claim := r.text(); claim != "" {
		l.Group, l.Field = placeOf(int((&argReader{[]string{claim}}).int64(t)))
	}
	known := r.text()
	if l.Known.Source != LikeLoaded {
		return l
	}
	state, watermark, _ := strings.Cut(known, "@")
	l.Known.Watermark = (&argReader{[]string{watermark}}).int64(t)
	var err error
	if l.Known.PendingLike, err = parseLike(state); err != nil {
		t.Error(err)
	}
	return l
}
