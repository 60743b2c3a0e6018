package shard

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzAnswers has Redis answer all scripts with whatever value: each method takes it for what it says or fails, and
// what a batch is told is about that batch.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		"_", "[]", ":1", "$v", "-OOM command not allowed", "-NOSCRIPT no script", "+OK", "#t", ",1.5",
		"[:0 :1700000000000000 [] [] [] [] $1?]",               // written
		"[:1 :1 [:0 :0 :0 $value] [] [] [] $]",                 // refused, for a known claim
		"[:1 :1 [] [:0 :1 $17 :1 :0 :0] [:0 :1 :5] [:0 :0] $]", // refused, for all other reasons
		"[:1 :1 [] [] [] [] $]",                                // refused, for none
		"[:1 :1 [:0 :9 :9 $v] [] [] [] $]",                     // refused, for a claim that is not there
		"[:1 :1 [] [:-1 :0 :0] [] [] $]",                       // on a shard that is not there
		"[:2 :1 [] [] [] [] $]", "[:256 :1 [] [] [] [] $]",
		"$\x93\x01\x92\xa37:2\xc2\xc2", // read
		"$\x93\x01\x92\xb39223372036854775807\xa5-1:-1\x93\x92\xa15\xc2\x94\xa11\xa11\xa11\xc2\x94\xc2\xa2-9\xc2\xa12",
		"$\x93\x01\x92\xc2\xa17\x92\xc2\x92\xa11\xc2",
		"[[[$117 $0] [$3 _]]]", "[[[$117:5 $] []]]", "[[[$?17 $] []]]", // likes
		"[:17 :0 :1 :2 :0 [:15 :16] [$token $other]]", // sealed
		"[:17 :0 :1 :2 :0 [:15 :16] [$token]]",
		"[$0 [$key $5 $\x02key\x00actor $117 $\x03key $1 $\x01key $99]]", // scanned
		"[$7 [$key]]",
		"[$value _]", "[_ $17]", // claimed
		"[:1 :0 :1 $g [$1 $5:1 $6]]", "[:1 :0 :1 $g [$7 $5 $6]]", // audited
	} {
		f.Add([]byte(seed))
	}
	p, client := newParrot(f)
	redis, err := NewRedis(client, RedisConfig{Shards: 4, Window: 5 * time.Second, Dedupe: 5 * time.Minute, MaxSpread: 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v := parseRESP(string(text))
		answer := v.encode()
		p.answer.Store(&answer)
		checkWriteAnswer(t, redis, v)
		checkReadAnswer(t, redis, v)
		checkLikesAnswer(t, redis, v)
		checkScanAnswer(t, redis, v)
		checkOtherAnswers(t, redis, v)
	})
}

// someBatch has every kind of what a batch can have, on two shards.
func someBatch() *batch {
	id := func(kind ClaimKind, field string) claim {
		return claim{set: true, kind: kind, field: field, value: "fingerprint"}
	}
	once := id(ClaimOnce, "k\x00a")
	once.period = 60_000
	b := newBatch(4)
	b.join(&job{parts: []part{{
		shard: 2, entries: []counter.Entry{{Key: "k", Delta: 1}, {Key: "l", Delta: -1}}, markers: []Marker{0, 17}, id: id(ClaimTimed, "id"), once: &once,
	}}})
	like := &counter.Change{Entries: []counter.Entry{{Key: "k"}}, Actor: "a", Like: counter.SetLiked}
	b.join(&job{change: *like, parts: []part{{shard: 2, id: id(ClaimOpaque, "any")}}})
	b.join(&job{change: *like, parts: []part{{shard: 1}}})
	return b
}

func checkWriteAnswer(t *testing.T, redis *Redis, v respValue) {
	t.Helper()
	b := someBatch()
	reply, err := redis.Write(t.Context(), b.seal(1, nil))
	if err != nil {
		return
	}
	switch status, ok := v.list[0].int64(); {
	case !ok || int64(reply.Status) != status || reply.Status > WriteLate:
		t.Errorf("%v was taken for status %d", v, reply.Status)
	case reply.Status == WriteRefused && len(reply.Known)+len(reply.Moved)+len(reply.Aged)+len(reply.Overflowing) == 0:
		t.Errorf("%v was taken for a refusal without a reason", v)
	}
	// What a lane does with it must not panic.
	for _, k := range reply.Known {
		b.owner(k)
	}
	for _, m := range reply.Moved {
		b.entry(m.EntryRef)
	}
	for _, ref := range reply.Overflowing {
		b.entry(ref)
	}
	for _, a := range reply.Aged {
		_ = b.shards[b.used[a.Shard]].owners[a.Group]
	}
}

func checkReadAnswer(t *testing.T, redis *Redis, v respValue) {
	t.Helper()
	keys := []string{"k", "l"}
	replies, err := redis.Read(t.Context(), []KeyGroup{{Shard: 3, Keys: keys}})
	if err != nil {
		return
	}
	answer, left, err := msgp.ReadIntfBytes([]byte(v.text))
	parts, ok := answer.([]any)
	if err != nil || !ok || len(left) > 0 || len(replies) != 1 || len(replies[0].Values) != len(keys) {
		t.Fatalf("%v was taken for %+v", v, replies)
	}
	for i, value := range replies[0].Values {
		bases, ok := parts[1].([]any)
		if !ok {
			t.Fatalf("%v was taken for %+v", answer, replies)
		}
		base, cached := bases[i].(string)
		total, ofLikes, _ := strings.Cut(base, ":")
		all, likes := bigInt(total), bigInt(ofLikes)
		if shard, ok := parts[2].([]any); ok && len(shard) > 0 {
			for _, window := range shard[1:] {
				pending, ok := window.([]any)
				if !ok {
					t.Fatalf("%v was taken for %+v", answer, replies)
				}
				all.Add(all, bigInt(pending[i]))
				if len(pending) > len(keys) {
					likes.Add(likes, bigInt(pending[len(keys)+i]))
				}
			}
			if markers, ok := shard[0].([]any); ok && value.Marker.String() != bigInt(markers[i]).String() {
				t.Errorf("%v was taken for the markers %+v", answer, replies)
			}
		}
		if value.Value != saturate(all) || value.Likes != saturate(likes) || value.Cached != cached {
			t.Errorf("%v was taken for %+v at position %d", answer, value, i)
		}
	}
}

// bigInt is 0 for no number.
func bigInt(text any) *big.Int {
	n, ok := new(big.Int).SetString(fmt.Sprint(text), 10)
	if !ok {
		return new(big.Int)
	}
	return n
}

func saturate(n *big.Int) int64 {
	if n.IsInt64() {
		return n.Int64()
	}
	if n.Sign() > 0 {
		return 1<<63 - 1
	}
	return -1 << 63
}

func checkLikesAnswer(t *testing.T, redis *Redis, v respValue) {
	t.Helper()
	pairs := []counter.Pair{{Key: "k", Actor: "a"}, {Key: "l", Actor: "a"}}
	values, err := redis.Likes(t.Context(), []PairGroup{{Shard: 3, Pairs: pairs}})
	if err != nil {
		return
	}
	if len(values) != 1 || len(values[0]) != len(pairs) {
		t.Fatalf("%v was taken for %+v", v, values)
	}
	for i, value := range values[0] {
		state := v.list[0].list[0].list[i].text
		if value.Known != (state != "") || value.Known && (value.Liked != (state[0] == '1') || !value.Liked && state[0] != '0') {
			t.Errorf("%v was taken for %+v at position %d", v, value, i)
		}
	}
}

func checkScanAnswer(t *testing.T, redis *Redis, v respValue) {
	t.Helper()
	if _, part, err := redis.Scan(t.Context(), 3, 1, 0); err == nil {
		checkWindow(t, v.list[1].texts(), part)
	}
}

// texts are those of a list, as far as its items have any.
func (v respValue) texts() []string {
	var texts []string
	for _, item := range v.list {
		if item.kind == ':' || item.kind == '#' {
			item.text = ""
		}
		texts = append(texts, item.text)
	}
	return texts
}

// checkOtherAnswers wants answers that are a flag, a value or a list of known form to be taken for that.
func checkOtherAnswers(t *testing.T, redis *Redis, v respValue) {
	t.Helper()
	ctx := t.Context()
	n, _ := v.int64()
	if ok, err := redis.Load(ctx, 3, 5, []Base{{Key: "k"}}); err == nil && ok != (n == 1) {
		t.Errorf("%v was taken for a load that is %v", v, ok)
	}
	if rolledBack, err := redis.Begin(ctx, 3, SealedWindow{ID: 5}, 4, "g"); err == nil && rolledBack != (n == 1) {
		t.Errorf("%v was taken for a rollback that is %v", v, rolledBack)
	}
	if claims, err := redis.Claimed(ctx, 3, []counter.RequestID{counter.ParseRequestID("id"), counter.ParseRequestID("other")}, 17); err == nil {
		for i, c := range claims {
			if cell := v.list[i]; c.Known != (cell.kind != '_') || c.Value != "" && c.Value != cell.text {
				t.Errorf("%v was taken for the claims %+v", v, claims)
			}
		}
	}
	if markers, err := redis.Spread(ctx, 3, []string{"k"}, 0); err == nil && len(markers) != len(v.list) {
		t.Errorf("%v was taken for markers %d", v, markers)
	}
	if reply, err := redis.Seal(ctx, 3, SealedWindow{ID: 5}, "g"); err == nil {
		for i, w := range reply.Sealed {
			if token := v.list[6].list[i].text; w.Token != token && w.Token != "" {
				t.Errorf("%v was taken for window %+v", v, w)
			}
		}
	}
	a := &baseAuditor{redis: redis, compare: redis.load} // whatever script
	if look, err := a.lookAt(ctx, 3, 5, []string{"k", "l"}, nil); err == nil {
		for _, d := range look.differing {
			if !slices.Contains([]string{"k", "l"}, d.Key) {
				t.Errorf("%v was taken for a difference of %q", v, d.Key)
			}
		}
	}
}
