package history_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/history"
)

// story is a history told event by event, a millisecond apart.
type story struct {
	t *testing.T
	*history.Checker
	at time.Duration
	op uint64
}

func tell(t *testing.T) *story {
	return &story{t: t, Checker: history.NewChecker(history.Config{Keys: []string{"a", "b"}, Dedupe: time.Minute})}
}

func (s *story) event(e history.Event) uint64 {
	s.at += time.Millisecond
	e.At = s.at
	if e.Op == 0 {
		s.op++
		e.Op = s.op
	}
	s.Apply(&e)
	return e.Op
}

func (s *story) begin(delta int64) uint64 {
	return s.event(history.Event{Kind: history.Change, Client: 1, Entries: []history.Entry{{Key: 0, Delta: delta}}})
}

func (s *story) beginWithoutID(delta int64) uint64 {
	return s.event(history.Event{Kind: history.Change, Client: 1, NoID: true, Entries: []history.Entry{{Key: 0, Delta: delta}}})
}

func (s *story) end(op uint64, outcome history.Outcome) {
	s.event(history.Event{Kind: history.Answer, Op: op, Outcome: outcome})
}

func (s *story) add(delta int64) uint64 {
	op := s.begin(delta)
	s.end(op, history.Applied)
	return op
}

func (s *story) repeat(op uint64, outcome history.Outcome) {
	s.event(history.Event{Kind: history.Repeat, Client: 1, Op: op})
	s.end(op, outcome)
}

func (s *story) read(count int64) { s.endRead(s.beginRead(0), count) }

func (s *story) beginRead(maxAge time.Duration) uint64 {
	return s.event(history.Event{Kind: history.Read, Client: 1, Keys: []uint32{0}, MaxAge: maxAge})
}

func (s *story) endRead(op uint64, count int64) {
	s.event(history.Event{Kind: history.ReadAnswer, Op: op, Values: []history.Value{{Count: count}}})
}

func (s *story) stale(count int64) {
	s.event(history.Event{Kind: history.ReadAnswer, Op: s.beginRead(0), Values: []history.Value{{Count: count, Stale: true}}})
}

func (s *story) mark(kind history.Kind) { s.event(history.Event{Kind: kind}) }

func (s *story) observe(source string, count int64) {
	s.event(history.Event{Kind: history.Observe, Source: source, Keys: []uint32{0}, Values: []history.Value{{Count: count}}})
}

func (s *story) beginLike(actor uint32, liked bool) uint64 {
	return s.event(history.Event{Kind: history.Change, Client: 1, Like: &history.Like{Actor: actor, Liked: liked}})
}

func (s *story) endLike(op uint64, changed bool) {
	s.event(history.Event{Kind: history.Answer, Op: op, Outcome: history.Applied, Liked: &history.Liked{Changed: changed}})
}

func (s *story) like(actor uint32, liked, changed bool) {
	s.endLike(s.beginLike(actor, liked), changed)
}

func (s *story) likes(likes int64) {
	op := s.beginRead(0)
	s.event(history.Event{Kind: history.ReadAnswer, Op: op, Values: []history.Value{{Count: likes, Likes: likes}}})
}

func (s *story) liked(liked bool) {
	op := s.event(history.Event{Kind: history.ReadLikes, Keys: []uint32{0}, Actor: 1})
	s.event(history.Event{Kind: history.ReadLikesAnswer, Op: op, Values: []history.Value{{Liked: liked}}})
}

// Each story ends with the one event that breaks a promise, or with none.
var stories = []struct {
	name    string
	promise int // 0 is none
	tell    func(*story)
}{
	{"a read below what was acknowledged", 3, func(s *story) { s.add(5); s.read(4) }},
	{"a read of what was acknowledged", 0, func(s *story) { s.add(5); s.read(5) }},
	{"a read above what was issued", 3, func(s *story) { s.add(5); s.read(6) }},
	{"a read of a change under way", 0, func(s *story) { s.begin(5); s.read(5); s.read(0) }},
	{"a read that began before", 0, func(s *story) { r := s.beginRead(0); s.add(5); s.endRead(r, 0) }},
	{"a read below a decrease that may have been", 3, func(s *story) { s.add(5); s.begin(-2); s.read(2) }},
	{"a read with a decrease that may have been", 0, func(s *story) { s.add(5); s.begin(-2); s.read(3); s.read(5) }},
	{"a read without an acknowledged decrease", 3, func(s *story) { s.add(5); s.add(-2); s.read(5) }},
	{"a read with a refused change", 3, func(s *story) { op := s.begin(5); s.end(op, history.Refused); s.read(5) }},
	{"a read of a change in doubt", 0, func(s *story) { op := s.begin(5); s.end(op, history.InDoubt); s.read(5); s.read(0) }},
	{"a read of a doubt that nobody can settle", 0, func(s *story) {
		s.end(s.beginWithoutID(5), history.InDoubt)
		s.read(5)
		s.read(0)
		s.mark(history.Settle)
		s.read(5)
	}},
	{"a change without an id that is counted twice", 3, func(s *story) { s.end(s.beginWithoutID(5), history.Applied); s.read(10) }},
	{"a refusal after a doubt", 0, func(s *story) {
		op := s.begin(5)
		s.end(op, history.InDoubt)
		s.repeat(op, history.Refused)
		s.read(5)
	}},
	{"a doubt that was settled and is not there", 3, func(s *story) {
		op := s.begin(5)
		s.end(op, history.InDoubt)
		s.repeat(op, history.Duplicate)
		s.read(0)
	}},
	{"a made up 0", 3, func(s *story) { s.add(5); s.mark(history.Floor); s.stale(0) }},
	{"a stale count", 0, func(s *story) { s.add(5); s.mark(history.Floor); s.add(2); s.stale(5) }},
	{"an old count within its age", 0, func(s *story) { s.add(5); s.mark(history.Floor); s.add(2); s.endRead(s.beginRead(5*time.Second), 5) }},
	{"an old count beyond its age", 3, func(s *story) {
		s.add(5)
		s.mark(history.Floor)
		s.add(2)
		for range 12 { // what happens takes note of the time
			s.at += time.Second
			s.read(7)
		}
		s.endRead(s.beginRead(5*time.Second), 5)
	}},
	{"the own write is not there", 3, func(s *story) {
		s.add(5)
		op := s.event(history.Event{Kind: history.Read, Client: 1, Keys: []uint32{0}, After: true})
		s.endRead(op, 0)
	}},
	{"a repetition counted again", 2, func(s *story) { s.repeat(s.add(5), history.Applied) }},
	{"a repetition found out", 0, func(s *story) { s.repeat(s.add(5), history.Duplicate); s.read(5) }},
	{"a repetition refused too early", 2, func(s *story) { s.repeat(s.add(5), history.Expired) }},
	{"an id of another change", 2, func(s *story) { s.end(s.event(history.Event{Kind: history.Forbidden}), history.Applied) }},
	{"an id of another change, refused", 0, func(s *story) { s.end(s.event(history.Event{Kind: history.Forbidden}), history.Refused) }},
	{"a like that is not read", 3, func(s *story) { s.like(1, true, true); s.liked(false) }},
	{"an unlike that is not read", 3, func(s *story) { s.like(1, true, true); s.like(1, false, true); s.liked(true) }},
	{"the older of two likes at the same time", 0, func(s *story) {
		a, b := s.beginLike(1, true), s.beginLike(1, false)
		s.endLike(a, true)
		s.endLike(b, true)
		s.liked(true)
		s.liked(false)
	}},
	{"a repeated like that changed something", 5, func(s *story) { s.like(1, true, true); s.like(1, true, true) }},
	{"a like counted twice", 3, func(s *story) { s.like(1, true, true); s.like(1, true, false); s.likes(2) }},
	{"likes counted once", 0, func(s *story) { s.like(1, true, true); s.like(2, true, true); s.like(1, false, true); s.likes(1) }},
	{"a provisional number of likes", 0, func(s *story) { s.mark(history.Unsettle); s.like(1, true, true); s.likes(1) }},
	{"a durable total that is too large", 1, func(s *story) { s.add(5); s.observe("", 6) }},
	{"a final total that is too small", 1, func(s *story) { s.add(5); s.observe("totals", 4) }},
	{"two final totals", 5, func(s *story) {
		op := s.begin(5)
		s.end(op, history.InDoubt)
		s.observe("totals", 0)
		s.observe("history", 5)
	}},
	{"a final like", 1, func(s *story) {
		s.like(1, true, true)
		s.event(history.Event{Kind: history.ObserveLikes, Source: "table", Keys: []uint32{0}, Actor: 1, Values: []history.Value{{}}})
	}},
	{"a rollback loses what came after the snapshot", 0, func(s *story) { s.rollBack(); s.read(5); s.read(7) }},
	{"a rollback loses what came before the snapshot", 3, func(s *story) { s.rollBack(); s.read(4) }},
	{"a rollback counts something twice", 3, func(s *story) { s.rollBack(); s.read(8) }},
	{"a rollback loses what was durable", 3, func(s *story) { s.rollBack(); s.observe("", 6); s.rollBackAgain(); s.mark(history.Settle); s.read(5) }},
	{"what is durable is back in the end", 0, func(s *story) {
		s.rollBack()
		s.observe("", 6)
		s.rollBackAgain()
		s.read(5)
		s.mark(history.Settle)
		s.read(6)
	}},
	{"a change after a rollback is lost", 3, func(s *story) { s.rollBack(); s.add(1); s.read(5) }},
	{"a rollback takes a like back", 0, func(s *story) {
		s.mark(history.Snapshot)
		s.like(1, true, true)
		s.goBack()
		s.mark(history.Settle)
		s.liked(false)
		s.likes(0)
	}},
	{"a like after a rollback is lost", 3, func(s *story) {
		s.mark(history.Snapshot)
		s.goBack()
		s.mark(history.Settle)
		s.like(1, true, true)
		s.liked(false)
	}},
	{"an id from before a rollback is refused", 0, func(s *story) {
		op := s.add(1)
		s.mark(history.Snapshot)
		s.goBack()
		s.mark(history.Settle)
		s.repeat(op, history.Expired)
	}},
}

// rollBack adds 5 before a snapshot and 2 after it, and goes back.
func (s *story) rollBack() {
	s.add(5)
	s.mark(history.Snapshot)
	s.add(2)
	s.goBack()
}

func (s *story) goBack() {
	s.mark(history.Rollback)
	s.mark(history.Restored)
}

func (s *story) rollBackAgain() { s.goBack() }

func TestStories(t *testing.T) {
	t.Parallel()
	for _, story := range stories {
		t.Run(story.name, func(t *testing.T) {
			t.Parallel()
			s := tell(t)
			story.tell(s)
			found := s.Violations()
			switch {
			case story.promise == 0 && len(found) > 0:
				t.Errorf("found %+v", found)
			case story.promise != 0 && (len(found) != 1 || found[0].Promise != story.promise):
				t.Errorf("found %+v, want that promise %d is broken", found, story.promise)
			}
		})
	}
}

// A store that is right is never found wrong, however its calls overlap, and what was recorded is found again.
func TestRightStore(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var file bytes.Buffer
	recorder := history.NewRecorder(history.Config{Keys: []string{"a", "b"}, Dedupe: time.Minute}, &file)
	var counts [2]int64
	type pending struct {
		event   history.Event
		applied bool
		value   int64
	}
	var open []*pending
	for range 20_000 {
		if len(open) < 10 && r.IntN(2) == 0 {
			p := &pending{event: history.Event{Kind: history.Change, Entries: []history.Entry{{Key: r.Uint32N(2), Delta: r.Int64N(9) - 4}}}}
			if p.event.Entries[0].Delta == 0 {
				p.event = history.Event{Kind: history.Read, Keys: []uint32{p.event.Entries[0].Key}}
			}
			p.event.Op = recorder.Record(p.event)
			open = append(open, p)
			continue
		}
		if len(open) == 0 {
			continue
		}
		i := r.IntN(len(open))
		p := open[i]
		if !p.applied { // at some moment of the call
			p.applied = true
			if p.event.Kind == history.Change {
				counts[p.event.Entries[0].Key] += p.event.Entries[0].Delta
			} else {
				p.value = counts[p.event.Keys[0]]
			}
			continue
		}
		open = append(open[:i], open[i+1:]...)
		if p.event.Kind == history.Change {
			recorder.Record(history.Event{Kind: history.Answer, Op: p.event.Op, Outcome: history.Applied})
		} else {
			recorder.Record(history.Event{Kind: history.ReadAnswer, Op: p.event.Op, Values: []history.Value{{Count: p.value}}})
		}
	}
	if found := recorder.Violations(); len(found) > 0 {
		t.Fatalf("found %+v", found)
	}
	if err := recorder.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := history.Replay(&file)
	if err != nil || len(again.Violations()) > 0 || again.Stats() != recorder.Stats() || again.Stats().Checked() == 0 {
		t.Errorf("replayed: %+v, %+v, %v, recorded %+v", again.Stats(), again.Violations(), err, recorder.Stats())
	}
}

func TestReplayRefusesOtherFiles(t *testing.T) {
	t.Parallel()
	if _, err := history.Replay(strings.NewReader("not a history")); err == nil {
		t.Error("replayed something else")
	}
}
