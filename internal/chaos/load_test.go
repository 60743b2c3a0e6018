package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/storetest"
)

const (
	keyCount   = 200
	hotKeys    = 1 // the first: in every batch, so that it is spread
	likedKeys  = 9 // the next ones
	signedKeys = 20
	// noIDKeys, after the others, have only changes without a request id.
	noIDKeys   = 600
	actorCount = 60
	callers    = 24
	batchSize  = 100
	// maxDoubts is how many changes a caller leaves in doubt before it settles one.
	maxDoubts = 3
	// maxThink is how long a caller waits between two calls, at most: the machine is to be busy with faults too.
	maxThink = 200 * time.Millisecond
	// callTimeout outlasts most faults, attemptTimeout makes a call try another server meanwhile.
	callTimeout    = 10 * time.Second
	attemptTimeout = time.Second
	// One caller in impatient gives a change up after haste, so that changes are in doubt now and then.
	impatient = 4
	haste     = 300 * time.Millisecond
	// floor is what each counter has before anything else: whatever is made up from nothing is below it.
	floor = 1_000_000_000
)

// load is clients that change and read counters until they are stopped, and record what they do.
type load struct {
	d       *deployment
	keys    []string
	clients []*client.Client
	calls   atomic.Int64 // answered well
	// noID makes changes without a request id.
	noID *noIDLoad
	// slots are counters that nobody administrates now.
	slots chan *adminSlot
	// patient is set while no caller may give up.
	patient atomic.Bool
	stopped chan struct{}
	group   sync.WaitGroup

	mu         sync.Mutex
	unexpected error // that no fault may cause
}

func keyName(i uint32) string       { return fmt.Sprint("chaos/key:", i) }
func actorName(i uint32) string     { return fmt.Sprint("user:", i) }
func isSigned(key uint32) bool      { return key >= keyCount-signedKeys }
func randomKey(r *rand.Rand) uint32 { return r.Uint32N(keyCount) }

func keyNames() []string {
	names := make([]string, keyCount+noIDKeys+adminKeys)
	for i := range names {
		names[i] = keyName(uint32(i))
	}
	return names
}

func (d *deployment) startLoad() {
	l := &load{d: d, keys: keyNames(), stopped: make(chan struct{}), slots: adminSlots()}
	d.load = l
	for range 4 {
		l.clients = append(l.clients, d.dial(client.WithTimeout(callTimeout), client.WithAttemptTimeout(attemptTimeout)))
	}
	l.noID = d.noIDLoad()
	l.preamble()
	for i := range callers {
		c := &caller{load: l, id: uint32(i + 1), client: l.clients[i%len(l.clients)], rand: rand.New(rand.NewPCG(d.rand.Uint64(), uint64(i)))}
		l.group.Go(c.run)
	}
}

// preamble gives every counter its floor, and has it drained.
func (l *load) preamble() {
	c := &caller{load: l, id: callers + 1, client: l.clients[0], rand: rand.New(rand.NewPCG(1, 1))}
	entries := make([]history.Entry, len(l.keys))
	for i := range entries {
		entries[i] = history.Entry{Key: uint32(i), Delta: floor}
	}
	c.change(&change{id: storetest.NewID(time.Now()), entries: entries})
	for len(c.doubts) > 0 {
		c.settle()
	}
	l.d.eventually("the floor is in the ledger", func() bool {
		n := 0
		err := l.d.query(fmt.Sprintf(`SELECT count FROM counter_totals WHERE count >= %d`, int64(floor)), func(scan func(...any) error) error {
			n++
			var count int64
			return scan(&count)
		})
		return err == nil && n == len(l.keys)
	})
	l.d.history.Record(history.Event{Kind: history.Floor})
}

// stop ends the load, and settles what is in doubt.
func (l *load) stop() {
	close(l.stopped)
	l.group.Wait()
}

func (l *load) ended() bool {
	select {
	case <-l.stopped:
		return true
	default:
		return l.failed()
	}
}

// failed reports that something was found, so that there is no use in going on.
func (l *load) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unexpected != nil || len(l.d.history.Violations()) > 0
}

// progress waits until so many more calls were answered well.
func (l *load) progress(calls int64) {
	l.d.t.Helper()
	target := l.calls.Load() + calls
	l.d.eventually(fmt.Sprintf("%d more calls are answered well", calls), func() bool { return l.calls.Load() >= target || l.failed() })
}

// note keeps an error that no fault may cause.
func (l *load) note(err error) {
	if errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOverloaded) || errors.Is(err, client.ErrInDoubt) ||
		errors.Is(err, client.ErrRequestIDExpired) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unexpected == nil {
		l.unexpected = err
	}
}

// change is a change with its identity.
type change struct {
	op      uint64
	id      string
	entries []history.Entry
	like    *history.Like
	doubted bool // it was in doubt once, which a later refusal does not end
}

// caller makes one call after the other.
type caller struct {
	load   *load
	id     uint32
	client *client.Client
	rand   *rand.Rand
	doubts []*change
	last   *change // that was acknowledged
	asOf   time.Time
}

func (c *caller) record(e history.Event) uint64 {
	e.Client = c.id
	return c.load.d.history.Record(e)
}

func (c *caller) run() {
	for !c.load.ended() {
		c.think()
		if len(c.doubts) > c.rand.IntN(maxDoubts) {
			c.settle()
			continue
		}
		switch n := c.rand.IntN(100); {
		case n < 20:
			c.change(&change{id: storetest.NewID(time.Now()), entries: c.randomEntries()})
		case n < 28:
			c.changeWithoutID()
		case n < 40:
			c.change(&change{id: storetest.NewID(time.Now()), entries: []history.Entry{c.randomEntry(randomKey(c.rand))}})
		case n < 60:
			c.change(&change{id: storetest.NewID(time.Now()), like: &history.Like{
				Key: hotKeys + c.rand.Uint32N(likedKeys), Actor: c.rand.Uint32N(actorCount), Liked: c.rand.IntN(3) > 0,
			}})
		case n < 75:
			c.read(c.randomKeys(50), 0, false)
		case n < 80:
			c.read([]uint32{c.rand.Uint32N(hotKeys + likedKeys)}, 0, false)
		case n < 88:
			c.read(c.randomKeys(20), 5*time.Second, false)
		case n < 92:
			c.readOwn()
		case n < 96:
			c.readLikes()
		case n < 98:
			c.repeat()
		case n < 99:
			c.administrate()
		default:
			c.forbidden()
		}
	}
	// In the end all is settled that ever can be; what a rollback took the id of is refused, and left.
	for tries := 0; len(c.doubts) > 0 && tries < 20 && !c.load.failed(); tries++ {
		c.settle()
	}
}

func (c *caller) think() {
	timer := time.NewTimer(time.Duration(c.rand.Int64N(int64(maxThink))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.load.stopped:
	}
}

func (c *caller) randomEntry(key uint32) history.Entry {
	delta := 1 + c.rand.Int64N(3)
	if isSigned(key) && c.rand.IntN(2) == 0 {
		delta = -delta
	}
	return history.Entry{Key: key, Delta: delta}
}

func (c *caller) randomEntries() []history.Entry {
	entries := make([]history.Entry, 0, batchSize)
	for _, key := range c.randomKeys(batchSize) {
		entries = append(entries, c.randomEntry(key))
	}
	return entries
}

// randomKeys are distinct, and the hot one is among them.
func (c *caller) randomKeys(n int) []uint32 {
	first := hotKeys + c.rand.Uint32N(keyCount-hotKeys)
	keys := []uint32{0}
	for i := range uint32(n - 1) {
		keys = append(keys, hotKeys+(first-hotKeys+i)%(keyCount-hotKeys))
	}
	return keys
}

// change sends a change for the first time.
func (c *caller) change(ch *change) {
	ch.op = c.record(history.Event{Kind: history.Change, Entries: ch.entries, Like: ch.like})
	c.send(ch)
}

// settle repeats a change that is in doubt.
func (c *caller) settle() {
	ch := c.doubts[0]
	c.doubts = c.doubts[1:]
	c.record(history.Event{Kind: history.Repeat, Op: ch.op})
	c.send(ch)
}

// repeat sends a change again that was acknowledged.
func (c *caller) repeat() {
	if c.last == nil {
		return
	}
	c.record(history.Event{Kind: history.Repeat, Op: c.last.op})
	e := c.call(c.last)
	e.Op = c.last.op
	c.record(e)
}

// send calls and records the answer.
func (c *caller) send(ch *change) {
	e := c.call(ch)
	e.Op = ch.op
	switch e.Outcome {
	case history.Applied, history.Duplicate:
		c.last = ch
	case history.InDoubt:
		ch.doubted = true
		c.doubts = append(c.doubts, ch)
	case history.Refused:
		if ch.doubted {
			c.doubts = append(c.doubts, ch)
		}
	}
	c.record(e)
}

// call makes the call of a change and tells its answer.
func (c *caller) call(ch *change) history.Event {
	ctx := context.Background()
	if c.id%impatient == 0 && !c.load.patient.Load() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, haste)
		defer cancel()
	}
	var receipt client.Receipt
	var err error
	e := history.Event{Kind: history.Answer}
	switch {
	case ch.like != nil:
		set := c.client.Like
		if !ch.like.Liked {
			set = c.client.Unlike
		}
		var liked client.LikeReceipt
		liked, err = set(ctx, keyName(ch.like.Key), actorName(ch.like.Actor), client.WithRequestID(ch.id))
		receipt = client.Receipt{Outcome: client.Applied, AsOf: liked.AsOf}
		e.Liked = &history.Liked{Changed: liked.Changed, Provisional: liked.Provisional, Count: liked.Count, CountKnown: liked.CountKnown}
	case len(ch.entries) == 1:
		receipt, err = c.client.Increment(ctx, keyName(ch.entries[0].Key), ch.entries[0].Delta, client.WithRequestID(ch.id))
	default:
		batch := make([]client.Entry, len(ch.entries))
		for i, entry := range ch.entries {
			batch[i] = client.Entry{Key: keyName(entry.Key), Delta: entry.Delta}
		}
		receipt, err = c.client.BatchIncrement(ctx, batch, client.WithRequestID(ch.id))
	}
	switch {
	case err == nil:
		e.Outcome = history.Applied
		if receipt.Outcome == client.Duplicate {
			e.Outcome = history.Duplicate
		}
		c.asOf = receipt.AsOf
		c.load.calls.Add(1)
	case errors.Is(err, client.ErrInDoubt):
		e.Outcome = history.InDoubt
	case errors.Is(err, client.ErrRequestIDExpired):
		e.Outcome = history.Expired
	default:
		e.Outcome = history.Refused
	}
	if err != nil {
		e.Liked = nil
		c.load.note(err)
	}
	return e
}

// forbidden sends what must be refused: an id of another change of the key, or one that is too old.
func (c *caller) forbidden() {
	entry := history.Entry{Key: randomKey(c.rand), Delta: 5}
	id := storetest.NewID(time.Now().Add(-dedupe - time.Minute))
	if c.last != nil && len(c.last.entries) == 1 && c.rand.IntN(2) == 0 {
		id, entry = c.last.id, history.Entry{Key: c.last.entries[0].Key, Delta: c.last.entries[0].Delta * 7}
	}
	if c.load.d.rollbacks && c.last != nil && id == c.last.id {
		return // a rollback may have taken the first use of the id back
	}
	op := c.record(history.Event{Kind: history.Forbidden})
	receipt, err := c.client.Increment(context.Background(), keyName(entry.Key), entry.Delta, client.WithRequestID(id))
	outcome := history.Refused
	if err == nil {
		outcome = history.Applied
		if receipt.Outcome == client.Duplicate {
			outcome = history.Duplicate
		}
	}
	c.record(history.Event{Kind: history.Answer, Op: op, Outcome: outcome})
}

// readOwn reads what this caller wrote last.
func (c *caller) readOwn() {
	if c.last == nil || len(c.last.entries) != 1 {
		c.change(&change{id: storetest.NewID(time.Now()), entries: []history.Entry{c.randomEntry(randomKey(c.rand))}})
	}
	if c.last != nil && len(c.last.entries) == 1 {
		c.read([]uint32{c.last.entries[0].Key}, 0, true)
	}
}

func (c *caller) read(keys []uint32, maxAge time.Duration, own bool) {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = keyName(key)
	}
	option := client.MaxAge(maxAge)
	if own {
		option = client.MinAsOf(c.asOf)
	}
	op := c.record(history.Event{Kind: history.Read, Keys: keys, MaxAge: maxAge, After: own})
	counts, err := c.client.BatchGet(context.Background(), names, option)
	e := history.Event{Kind: history.ReadAnswer, Op: op, Failed: err != nil}
	for _, count := range counts {
		e.Values = append(e.Values, history.Value{Count: count.Count, Likes: count.Likes, Stale: count.Stale})
	}
	c.answered(e, err)
}

func (c *caller) readLikes() {
	actor := c.rand.Uint32N(actorCount)
	keys, names := make([]uint32, likedKeys), make([]string, likedKeys)
	for i := range keys {
		keys[i] = hotKeys + uint32(i)
		names[i] = keyName(keys[i])
	}
	op := c.record(history.Event{Kind: history.ReadLikes, Keys: keys, Actor: actor})
	states, err := c.client.Liked(context.Background(), actorName(actor), names)
	e := history.Event{Kind: history.ReadLikesAnswer, Op: op, Failed: err != nil}
	for _, state := range states {
		e.Values = append(e.Values, history.Value{Liked: state.Liked})
	}
	c.answered(e, err)
}

func (c *caller) answered(e history.Event, err error) {
	if err == nil {
		c.load.calls.Add(1)
	} else {
		c.load.note(err)
	}
	c.record(e)
}
