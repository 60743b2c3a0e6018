package shard

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plusone-dev/plusone/internal/counter"
)

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
