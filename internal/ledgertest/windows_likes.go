package ledgertest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/shard"
)

// epoch is a moment from which the tests of windows count microseconds.
const epoch = 1_900_000_000_000_000

// setLike is a pair's entry in a window. At and since are counted from the epoch; since is at if the window takes the
// entry for a change, and less if for a repeat.
type setLike struct {
	key, actor string
	liked      bool
	at, since  int64
}

func (s setLike) pair() counter.Pair { return counter.Pair{Key: s.key, Actor: s.actor} }

// believed is what the window supposes that the entry adds.
func (s setLike) believed() int64 {
	switch {
	case s.since < s.at:
		return 0
	case s.liked:
		return 1
	}
	return -1
}

// sets is a window that has only likes, and the deltas that it supposes of them.
func sets(n int, id int64, likes ...setLike) flush.Window {
	w := flush.Window{Shard: n, ID: id, WindowPart: shard.WindowPart{
		Deltas: make(map[string]int64), LikeDeltas: make(map[string]int64), Likes: make(map[counter.Pair]shard.PendingLike),
	}}
	for _, s := range likes {
		w.Likes[s.pair()] = shard.PendingLike{Liked: s.liked, Micros: epoch + s.at, Since: epoch + s.since}
		if d := s.believed(); d != 0 {
			w.Deltas[s.key] += d
			w.LikeDeltas[s.key] += d
		}
	}
	return w
}

// wantPair compares what the ledger holds of a pair. At is 0 if it should hold nothing.
func wantPair(t testing.TB, l WindowInstance, key, actor string, liked bool, at int64) {
	t.Helper()
	likes, err := l.Other.Likes(context.Background(), []counter.Pair{{Key: key, Actor: actor}})
	if err != nil || len(likes.States) != 1 || len(likes.Watermarks) != Shards {
		t.Fatalf("Likes: %+v, %v", likes, err)
	}
	want := counter.LikeState{Liked: liked}
	if at != 0 {
		want.At = time.UnixMicro(epoch + at)
	}
	if got := likes.States[0]; got.Liked != want.Liked || !got.At.Equal(want.At) {
		t.Errorf("%s, %s is %+v, want %+v", key, actor, got, want)
	}
}

// wantLikeRows compares what Bases returns of a key with rows written "shard total likes".
func wantLikeRows(t testing.TB, l WindowInstance, key string, want ...string) {
	t.Helper()
	bases, err := l.Bases(context.Background(), []string{key})
	if err != nil {
		t.Fatalf("Bases: %v", err)
	}
	var got []string
	for _, row := range bases.Rows {
		got = append(got, fmt.Sprint(row.Shard, " ", row.Total, " ", row.Likes))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("rows of %s: %q, want %q", key, got, want)
	}
}

// windowRules are what comes of an entry of a window, by what the ledger holds.
var windowRules = []struct {
	name     string
	before   string // "", or what the pair was set to at 10
	set      setLike
	liked    bool
	at       int64 // of the pair after, 0 if it has no row
	adds     int64
	supposed int64 // what the window supposes that it adds
}{
	{"like", "", setLike{liked: true, at: 20, since: 20}, true, 20, 1, 1},
	{"unlike", "", setLike{at: 20, since: 20}, false, 20, 0, -1}, // leaves a row
	{"like repeated", "", setLike{liked: true, at: 20, since: 5}, true, 20, 1, 0},
	{"unlike repeated", "", setLike{at: 20, since: 5}, false, 0, 0, 0},
	{"unlike of what was never liked", "", setLike{at: 20, since: -epoch}, false, 0, 0, 0},

	{"like of liked", "liked", setLike{liked: true, at: 20, since: 20}, true, 20, 0, 1},
	{"unlike of liked", "liked", setLike{at: 20, since: 20}, false, 20, -1, -1},
	{"like of liked repeated", "liked", setLike{liked: true, at: 20, since: 10}, true, 10, 0, 0},
	{"unlike of liked repeated", "liked", setLike{at: 20, since: 5}, false, 20, -1, 0},

	{"like of unliked", "unliked", setLike{liked: true, at: 20, since: 20}, true, 20, 1, 1},
	{"unlike of unliked", "unliked", setLike{at: 20, since: 20}, false, 20, 0, -1},
	{"like of unliked repeated", "unliked", setLike{liked: true, at: 20, since: 5}, true, 20, 1, 0},
	{"unlike of unliked repeated", "unliked", setLike{at: 20, since: 10}, false, 10, 0, 0},

	{"unlike at the same moment", "liked", setLike{at: 10, since: 10}, true, 10, 0, -1},
	{"like at the same moment", "unliked", setLike{liked: true, at: 10, since: 10}, false, 10, 0, 1},
	{"unlike from before", "liked", setLike{at: 9, since: 9}, true, 10, 0, -1},
	{"like from before", "unliked", setLike{liked: true, at: 9, since: 9}, false, 10, 0, 1},
	{"unlike from before repeated", "liked", setLike{at: 9, since: 8}, true, 10, 0, 0},
	{"like from before repeated", "unliked", setLike{liked: true, at: 9, since: 8}, false, 10, 0, 0},
	{"from right after", "unliked", setLike{liked: true, at: 11, since: 11}, true, 11, 1, 1},
}

// windowLikes applies each rule by a window of its own, of another shard than what was before, and then all of them
// by one window.
func windowLikes(t *testing.T, l WindowInstance) {
	var together, before []setLike
	misjudged := 0
	for i, rule := range windowRules {
		set := rule.set
		set.key, set.actor = fmt.Sprint("likes/", i), "ann"
		if rule.before != "" {
			was := setLike{set.key, set.actor, rule.before == "liked", 10, 10}
			apply(t, l, sets(0, int64(i+1), was))
			was.key = fmt.Sprint("together/", i)
			before = append(before, was)
		}
		applied := apply(t, l, sets(1, int64(i+1), set))
		if off := rule.adds - rule.supposed; off != 0 {
			wantAdjusted(t, applied, 0, int(max(off, -off)), set.key)
			misjudged += int(max(off, -off))
		} else {
			wantAdjusted(t, applied, 0, 0)
		}
		wantRule(t, l, i, set.key)
		if t.Failed() {
			t.Fatalf("rule %q", rule.name)
		}
		set.key = fmt.Sprint("together/", i)
		together = append(together, set)
	}
	apply(t, l, sets(0, 1000, before...))
	if got := apply(t, l, sets(1, 1000, together...)); len(got.Adjusted) != misjudged || got.CorrectedLikes != misjudged {
		t.Errorf("adjusted %v, corrected %d, want %d", got.Adjusted, got.CorrectedLikes, misjudged)
	}
	for i := range windowRules {
		wantRule(t, l, i, fmt.Sprint("together/", i))
	}
}

func wantRule(t *testing.T, l WindowInstance, i int, key string) {
	t.Helper()
	rule := windowRules[i]
	wantPair(t, l, key, "ann", rule.liked, rule.at)
	var rows []string
	if rule.before == "liked" {
		rows = append(rows, "0 1 1")
	}
	if rule.adds != 0 {
		rows = append(rows, fmt.Sprintf("1 %d %d", rule.adds, rule.adds))
	}
	wantLikeRows(t, l, key, rows...)
}

// windowLikesOnce applies windows again, and older ones after them.
func windowLikesOnce(t *testing.T, l WindowInstance) {
	first := sets(1, 5, setLike{"likes/a", "ann", true, 10, 10}, setLike{"likes/a", "bob", true, 11, 11})
	second := sets(1, 6, setLike{"likes/a", "ann", false, 20, 20})
	for _, w := range []flush.Window{first, second} {
		if got := apply(t, l, w); !got.OK {
			t.Errorf("%+v", got)
		}
		for _, again := range []flush.Window{w, first} {
			if got := apply(t, l.Other, again); got.OK || len(got.Adjusted) != 0 {
				t.Errorf("window %d was applied again: %+v", again.ID, got)
			}
		}
	}
	// What a replayed window says of likes would be old news to the ledger, too, were it a window of another shard.
	wantAdjusted(t, apply(t, l, sets(0, 7, setLike{"likes/a", "ann", true, 10, 10})), 0, 1, "likes/a")
	wantPair(t, l, "likes/a", "ann", false, 20)
	wantPair(t, l, "likes/a", "bob", true, 11)
	wantLikeRows(t, l, "likes/a", "1 1 1")
}

// windowLikesMisjudged mixes likes with increments, and with others of the key.
func windowLikesMisjudged(t *testing.T, l WindowInstance) {
	apply(t, l, sets(0, 1, setLike{"likes/a", "ann", true, 10, 10}, setLike{"likes/a", "bob", true, 10, 10}))

	// One misjudged like among right ones and increments.
	w := sets(0, 2, setLike{"likes/a", "ann", true, 20, 20}, setLike{"likes/a", "eve", true, 20, 20}, setLike{"likes/b", "eve", true, 20, 20})
	w.Deltas["likes/a"] += 5
	w.Deltas["likes/c"] = 7
	wantAdjusted(t, apply(t, l, w), 0, 1, "likes/a")
	wantLikeRows(t, l, "likes/a", "0 8 3")
	wantLikeRows(t, l, "likes/b", "0 1 1")
	wantLikeRows(t, l, "likes/c", "0 7 0")

	// Taken back and made again within the window: the moment moves, the count does not.
	w = sets(0, 3)
	w.Likes[counter.Pair{Key: "likes/a", Actor: "bob"}] = shard.PendingLike{Liked: true, Micros: epoch + 31, Since: epoch + 31}
	w.Deltas["likes/a"], w.LikeDeltas["likes/a"] = 0, 0
	wantAdjusted(t, apply(t, l, w), 0, 0)
	wantPair(t, l, "likes/a", "bob", true, 31)
	wantLikeRows(t, l, "likes/a", "0 8 3")

	// Likes that cancel an increment out are likes still, and change nothing in the history.
	w = sets(0, 4, setLike{"likes/d", "ann", true, 40, 40})
	w.Deltas["likes/d"]--
	wantAdjusted(t, apply(t, l, w), 0, 0)
	wantLikeRows(t, l, "likes/d", "0 0 1")
	var buckets int
	row := l.DB.QueryRowContext(t.Context(), `SELECT count(*) FROM counter_history WHERE key = 'likes/d'`)
	if err := row.Scan(&buckets); err != nil || buckets != 0 {
		t.Errorf("%d buckets without a change, %v", buckets, err)
	}

	// Two mistakes that cancel each other out are none of the key.
	w = sets(0, 5, setLike{"likes/a", "ann", true, 50, 50}, setLike{"likes/a", "new", false, 50, 50})
	wantAdjusted(t, apply(t, l, w), 0, 0)
	wantLikeRows(t, l, "likes/a", "0 8 3")
	wantPair(t, l, "likes/a", "new", false, 50)

	// Two of one kind are two.
	w = sets(0, 6, setLike{"likes/a", "ann", true, 60, 60}, setLike{"likes/a", "bob", true, 60, 60})
	wantAdjusted(t, apply(t, l, w), 0, 2, "likes/a")
	wantLikeRows(t, l, "likes/a", "0 8 3")

	// A window whose deltas know nothing of a like that is one.
	wantAdjusted(t, apply(t, l, sets(0, 7, setLike{"likes/e", "ann", true, 70, 65})), 0, 1, "likes/e")
	wantLikeRows(t, l, "likes/e", "0 1 1")
}

// windowLikesOnTwoShards lets two shards' windows have states of one pair, in either order.
func windowLikesOnTwoShards(t *testing.T, l WindowInstance) {
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	id := int64(0)
	for _, last := range []bool{true, false} {
		for i, order := range orders {
			key := fmt.Sprint("likes/", last, i)
			windows := []setLike{{key, "ann", last, 10, 10}, {key, "ann", !last, 20, 20}, {key, "ann", last, 30, 30}}
			for _, n := range order {
				id++
				if got := apply(t, l, sets(n, id, windows[n])); !got.OK {
					t.Fatalf("%+v", got)
				}
			}
			wantPair(t, l, key, "ann", last, 30)
			bases, err := l.Bases(t.Context(), []string{key})
			if err != nil {
				t.Fatal(err)
			}
			total, likes, want := int64(0), int64(0), int64(0)
			for _, row := range bases.Rows {
				total, likes = total+row.Total, likes+row.Likes
			}
			if last {
				want = 1
			}
			if total != want || likes != want {
				t.Errorf("in order %v: total %d, likes %d, want %d", order, total, likes, want)
			}
		}
	}
}

// windowLikesRace applies windows of all shards at once that have the same pairs, some as changes, some as repeats.
// The newest state of each pair stays.
func windowLikesRace(t *testing.T, l WindowInstance) {
	const rounds, pairs = 10, 120
	for round := int64(1); round <= rounds; round++ {
		var group sync.WaitGroup
		for n := range Shards {
			var likes []setLike
			for i := range pairs {
				s := setLike{key: fmt.Sprint("likes/", i%7), actor: fmt.Sprint("actor-", i/7)}
				s.at = round*10 + int64((n+i)%Shards)
				s.since = s.at
				s.liked = (int(round)+i+n)%2 == 0
				if (n+i)%Shards == 0 { // the oldest of them
					s.since--
				}
				likes = append(likes, s)
			}
			ledger := []flush.WindowLedger{l, l.Other}[n%2]
			group.Go(func() {
				if got, err := ledger.Apply(context.Background(), sets(n, round, likes...)); err != nil || !got.OK {
					t.Errorf("Apply: %+v, %v", got, err)
				}
			})
		}
		group.Wait()
	}
	for i := range pairs {
		n := (2*Shards - 1 - i%Shards) % Shards // whose state is the newest
		wantPair(t, l, fmt.Sprint("likes/", i%7), fmt.Sprint("actor-", i/7), (rounds+i+n)%2 == 0, rounds*10+Shards-1)
	}
}

// windowLikesClipped has likes of which the total takes no more.
func windowLikesClipped(t *testing.T, l WindowInstance) {
	apply(t, l, adds(0, 1, map[string]int64{"likes/full": math.MaxInt64, "likes/a": 1, "likes/low": math.MinInt64}))
	w := sets(0, 2, setLike{"likes/full", "ann", true, 10, 10}, setLike{"likes/a", "ann", true, 10, 10}, setLike{"likes/low", "ann", false, 10, 10})
	wantAdjusted(t, apply(t, l, w), 1, 1, "likes/full", "likes/low")
	wantPair(t, l, "likes/full", "ann", true, 10)
	wantLikeRows(t, l, "likes/full", fmt.Sprint("0 ", math.MaxInt64, " 1"))
	wantLikeRows(t, l, "likes/a", "0 2 1")
	wantLikeRows(t, l, "likes/low", fmt.Sprint("0 ", math.MinInt64, " 0"))
	// A delta that fits only without what is supposed of its likes.
	w = sets(0, 3, setLike{"likes/b", "ann", false, 20, 20})
	w.Deltas["likes/b"] = math.MaxInt64
	if got := apply(t, l, w); !got.OK || got.CorrectedLikes != 1 {
		t.Errorf("%+v", got)
	}
	wantLikeRows(t, l, "likes/b", fmt.Sprint("0 ", math.MaxInt64, " 0"))
}

// likers asks who likes a key, or did, and who of many.
func likers(t *testing.T, l WindowInstance) {
	apply(t, l, sets(0, 5, setLike{"likes/a", "ann", true, 10, 10}, setLike{"likes/a", "bob", false, 10, 10}, setLike{"likes/b", "eve", true, 10, 10}))
	apply(t, l, sets(1, 7, setLike{"likes/a", "cid", true, 10, 10}))
	for most, want := range map[int]int{1: 1, 3: 3, 4: 3} {
		var got []string
		watermarks, err := l.Other.Likers(t.Context(), "likes/a", most, func(actor []byte) { got = append(got, string(actor)) })
		if slices.Sort(got); err != nil || watermarks[0] != 5 || watermarks[1] != 7 || len(watermarks) != Shards || len(got) != want ||
			most >= 3 && !slices.Equal(got, []string{"ann", "bob", "cid"}) {
			t.Errorf("at most %d likers are %v with the watermarks %v, %v", most, got, watermarks, err)
		}
	}
	if _, err := l.Likers(t.Context(), "likes/none", 1, func(actor []byte) { t.Errorf("%s likes what nobody likes", actor) }); err != nil {
		t.Error(err)
	}
}

// largeLikeWindow takes several statements.
func largeLikeWindow(t *testing.T, l WindowInstance) {
	const n, keys = 25_000, 90
	var likes, unlikes []setLike
	for i := range n {
		s := setLike{fmt.Sprint("likes/", i%keys), fmt.Sprint("actor-", i), true, 10, 10}
		likes = append(likes, s)
		if i%2 == 0 {
			s.liked, s.at, s.since = false, 20, 20
		} else {
			s.at = 20 // a repeat
		}
		unlikes = append(unlikes, s)
	}
	wantAdjusted(t, apply(t, l, sets(2, 1, likes...)), 0, 0)
	wantAdjusted(t, apply(t, l, sets(2, 2, unlikes...)), 0, 0)
	var total, rows int64
	row := l.DB.QueryRowContext(t.Context(), `SELECT sum(likes)::bigint, count(*) FROM counter_totals WHERE count = likes`)
	if err := row.Scan(&total, &rows); err != nil || total != n/2 || rows != keys {
		t.Errorf("%d likes of %d keys, %v, want %d of %d", total, rows, err, n/2, keys)
	}
	wantPair(t, l, "likes/0", "actor-0", false, 20)
	wantPair(t, l, fmt.Sprint("likes/", (n-1)%keys), fmt.Sprint("actor-", n-1), true, 10)
}
