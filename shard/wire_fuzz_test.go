package shard

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzLikeState wants each state that can be written to be read as it was, and what is read to be one that can be
// written.
func FuzzLikeState(f *testing.F) {
	for _, text := range []string{
		"", "1", "1:", "117", "017:5", "117:17", "?17", "1-9223372036854775808:9223372036854775807", "117:5:3",
		"117+", "117:5+", "1+", "117++",
	} {
		f.Add(text, true, int64(17), int64(5))
	}
	f.Fuzz(func(t *testing.T, text string, liked bool, micros, since int64) {
		for _, isNew := range []bool{false, true} {
			want := PendingLike{Liked: liked, New: isNew, Micros: micros, Since: since}
			if got, err := parseLike(formatLike(want)); err != nil || got != want {
				t.Errorf("%+v, written as %q, was read as %+v, %v", want, formatLike(want), got, err)
			}
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
	f.Add("k", "a", int64(0), "\x02k\x00a", "117+")
	f.Add("k", "a", int64(0), "\x02k\x00a", "?17")
	f.Add("k", "a", int64(0), "\x01k", "not a number")
	f.Add("k", "a", int64(0), "\x03", "+1")
	f.Fuzz(func(t *testing.T, key, actor string, n int64, name, value string) {
		pair := counter.Pair{Key: key, Actor: actor}
		// Keys and actors have no control characters.
		if slices.ContainsFunc([]byte(key+actor), func(c byte) bool { return c < ' ' }) {
			return
		}
		state, number := PendingLike{Liked: n%2 == 0, New: n%3 == 0, Micros: n, Since: n / 2}, strconv.FormatInt(n, 10)
		fields := []string{
			key, number, string(likeSumField) + key, number, string(markerField) + key, number, fieldOf(pair), formatLike(state),
		}
		part, err := parseWindow(fields)
		want := WindowPart{
			Deltas: map[string]int64{key: n}, LikeDeltas: map[string]int64{key: n},
			Likes: map[counter.Pair]PendingLike{pair: state}, Markers: map[string]Marker{key: Marker(n)},
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
		got["\x01"+key] = n.String()
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
		a, b := idClaim(one, away, fingerprintOf(one, &counter.FingerprintKey{})), idClaim(other, otherAway, fingerprintOf(other, &counter.FingerprintKey{}))
		sameClaim := one.RequestID == other.RequestID && away == otherAway
		if (a.kind == b.kind && a.bucket == b.bucket && a.field == b.field) != sameClaim {
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
