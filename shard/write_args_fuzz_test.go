package shard

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tinylib/msgp/msgp"
	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzWriteArgs reads the arguments of batches as write.lua does: what it reads is what was sent.
func FuzzWriteArgs(f *testing.F) {
	AddChance(f, 8, 100)
	var encoder writeEncoder
	f.Fuzz(Chance(func(t *testing.T, rt *rapid.T) {
		shards := rapid.SliceOfN(anyShardWrite, 1, 3).Draw(rt, "shards")
		batch := &WriteBatch{ID: "id", Made: 7, Shards: shards}
		sent := encoder.encode(batch, [5]int64{1, 2, 3, 4, 5})
		r := &argReader{t: t, args: sent[2:], position: 3}
		packed := []byte(sent[0])
		length, packed, err := msgp.ReadArrayHeaderBytes(packed)
		for range length {
			var n int64
			if n, packed, err = msgp.ReadInt64Bytes(packed); err != nil {
				t.Fatal(err)
			}
			r.numbers = append(r.numbers, n)
		}
		if err != nil || len(packed) > 0 || sent[1] != "id" || !slices.Equal(r.numbers[:6], []int64{7, 1, 2, 3, 4, 5}) {
			t.Fatalf("%v, the id %q, numbers %v, and %x", err, sent[1], r.numbers, packed)
		}
		plain := r.numbers[6] == 1
		counts := r.numbers[7 : 7+2*len(shards)]
		r.numbers = r.numbers[7+2*len(shards):]
		if plain == slices.ContainsFunc(shards, hasMore) {
			t.Errorf("plain is %v for %+v", plain, shards)
		}
		for i, want := range shards {
			if got := r.shard(counts[2*i], counts[2*i+1], plain); !reflect.DeepEqual(got, normal(want)) {
				t.Errorf("shard %d was sent as\n%+v\nand read as\n%+v\nfrom %q", i, normal(want), got, sent)
			}
		}
		if len(r.args)+len(r.numbers) > 0 {
			t.Errorf("%q and %v were left over of %q", r.args, r.numbers, sent)
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
			s.Markers = append(s.Markers, Marker(rapid.Int64Range(0, 2).Draw(t, "marker")))
		}
		s.Claims = rapid.SliceOfN(anyClaimGroup, 0, 2).Draw(t, "claims")
		for range rapid.IntRange(0, 3).Draw(t, "likes") {
			l := LikeWrite{
				Pair: counter.Pair{Key: anyText.Draw(t, "key"), Actor: anyText.Draw(t, "actor")}, Liked: rapid.Bool().Draw(t, "liked"),
				Marker: Marker(rapid.Int64Range(0, math.MaxInt64).Draw(t, "marker")), Group: rapid.IntRange(-1, len(s.Claims)-1).Draw(t, "group"),
			}
			if l.Group >= 0 {
				l.Field = rapid.IntRange(0, len(s.Claims[l.Group].Fields)-1).Draw(t, "field")
			}
			l.Known.Source = LikeSource(rapid.IntRange(0, 2).Draw(t, "source"))
			if l.Known.Source == LikeLoaded {
				l.Known.Watermark = rapid.Int64Range(0, math.MaxInt64).Draw(t, "watermark")
				l.Known.PendingLike = PendingLike{
					Liked: rapid.Bool().Draw(t, "was"), Micros: anyNumber.Draw(t, "micros"), Since: anyNumber.Draw(t, "since"),
				}
			}
			s.Likes = append(s.Likes, l)
		}
		return s
	})
)

// normal is a part without the difference between nil and empty.
func normal(s ShardWrite) ShardWrite {
	return ShardWrite{
		Entries: append([]counter.Entry{}, s.Entries...), Markers: append([]Marker{}, s.Markers...),
		Claims: append([]ClaimGroup{}, s.Claims...), Likes: append([]LikeWrite{}, s.Likes...),
	}
}

// argReader takes arguments off a list, and numbers off another, as write.lua describes them.
type argReader struct {
	t        *testing.T
	args     []string
	numbers  []int64
	position int // of the next argument, from 1
}

func (r *argReader) text() string {
	arg := r.args[0]
	r.args = r.args[1:]
	r.position++
	return arg
}

func (r *argReader) texts(n int) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = r.text()
	}
	return texts
}

func (r *argReader) number() int64 {
	n := r.numbers[0]
	r.numbers = r.numbers[1:]
	return n
}

func (r *argReader) parse(text string) int64 {
	r.t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// hasMore reports whether a part has anything but entries that are not big.
func hasMore(s ShardWrite) bool {
	for _, e := range s.Entries {
		if math.Abs(float64(e.Delta)) >= carefulDelta {
			return true
		}
	}
	return len(s.Claims) > 0 || len(s.Likes) > 0 || slices.Max(append(s.Markers, 0)) > 0
}

func (r *argReader) shard(entries, ones int64, plain bool) ShardWrite {
	r.t.Helper()
	var careful bool
	var markers, groups, keys int64
	var likes int
	if !plain {
		careful, markers, groups, keys, likes = r.number() == 1, r.number(), r.number(), r.number(), int(r.number())
	}
	s := normal(ShardWrite{Markers: make([]Marker, entries)})
	big := false
	for i := range entries {
		e := counter.Entry{Key: r.text(), Delta: 1}
		if i >= ones {
			e.Delta = r.parse(r.text())
		}
		s.Entries = append(s.Entries, e)
		big = big || math.Abs(float64(e.Delta)) >= carefulDelta
	}
	if careful != big {
		r.t.Errorf("careful is %v for %v", careful, s.Entries)
	}
	for range markers {
		s.Markers[r.number()-1] = Marker(r.parse(r.text()))
	}
	places := map[int64][2]int{} // group and field of the claims, by their positions
	for g := range int(groups) {
		group := ClaimGroup{
			Kind: ClaimKind(r.number()), Oldest: r.number(), Newest: r.number(), Period: r.number(), Current: r.number() == 1,
			Bucket: r.parse(r.text()),
		}
		for i := range int(r.number()) {
			places[int64(r.position)] = [2]int{g, i}
			group.Fields, group.Values = append(group.Fields, r.text()), append(group.Values, r.text())
		}
		s.Claims = append(s.Claims, group)
	}
	keyTexts, keyMarkers := r.texts(int(keys)), r.texts(int(keys))
	if likes == 0 {
		return s
	}
	type countedRun struct {
		likeRun
		likes int64
	}
	runs := make([]countedRun, r.number())
	states := int(r.number())
	fields, known := r.texts(likes), append([]string{""}, r.texts(states)...)
	for i := range runs {
		runs[i] = countedRun{likeRun{r.number(), r.number(), r.number(), r.number()}, r.number()}
	}
	run := countedRun{}
	for i := range likes {
		if run.likes == 0 {
			run, runs = runs[0], runs[1:]
		}
		run.likes--
		key, first, claim := run.key, int(run.firstOfPair), r.number()
		l := LikeWrite{Liked: run.what%2 == 1, Marker: Marker(r.parse(keyMarkers[key-1])), Group: -1}
		l.Known.Source = LikeSource(run.what / likeSource)
		l.Key, l.Actor, _ = strings.Cut(fields[i][1:], "\x00")
		if l.Key != keyTexts[key-1] {
			r.t.Errorf("the key %q of %q", keyTexts[key-1], fields[i])
		}
		if first > 0 && run.likes > 0 {
			r.t.Errorf("a run of likes of one pair, of %q", fields)
		}
		if again := slices.Index(fields, fields[i]); first == 0 && slices.Contains(fields[i+1:], fields[i]) ||
			first == 0 && again < i || first > 0 && again != first-1 {
			r.t.Errorf("the pair of like %d is said to be that of %d, of %q", i+1, first, fields)
		}
		if claim > 0 {
			l.Group, l.Field = places[claim][0], places[claim][1]
			value := &s.Claims[l.Group].Values[l.Field]
			*value = strings.TrimSuffix(*value, "1")
		}
		r.known(&l, known[run.state])
		s.Likes = append(s.Likes, l)
	}
	if len(runs) > 0 || run.likes > 0 {
		r.t.Errorf("%v and %v are left of the runs of %d likes", run, runs, likes)
	}
	return s
}

func (r *argReader) known(l *LikeWrite, known string) {
	r.t.Helper()
	if l.Known.Source != LikeLoaded {
		return
	}
	state, watermark, _ := strings.Cut(known, "@")
	l.Known.Watermark = r.parse(watermark)
	var err error
	if l.Known.PendingLike, err = parseLike(state); err != nil {
		r.t.Error(err)
	}
}
