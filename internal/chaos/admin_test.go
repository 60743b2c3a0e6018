package chaos_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/storetest"
)

const (
	// adminKeys, after all others, are deleted and imported to.
	adminKeys     = 12
	firstAdminKey = keyCount + noIDKeys
	// adminClients is added to the number of a caller for what it does as an administrator.
	adminClients = 1_000
	// adminTimeout outlasts a window and most faults.
	adminTimeout = 20 * time.Second
)

// adminSlot is a counter that one caller at a time administrates, so that what it holds is known, and with it what a Delete
// takes back.
type adminSlot struct {
	key    uint32
	total  int64 // of increments
	actors [2]uint32
}

func adminSlots() chan *adminSlot {
	slots := make(chan *adminSlot, adminKeys)
	for i := range uint32(adminKeys) {
		slots <- &adminSlot{key: firstAdminKey + i, total: floor, actors: [2]uint32{actorCount + 2*i, actorCount + 2*i + 1}}
	}
	return slots
}

// administrate imports to a counter, forgets one of its actors or deletes it, however often that must be repeated.
func (c *caller) administrate() {
	if c.load.d.rollbacks {
		return // which leave in doubt what a counter holds
	}
	var slot *adminSlot
	select {
	case slot = <-c.load.slots:
	default:
		return
	}
	id := storetest.NewID(time.Now())
	var settled bool
	switch c.rand.IntN(3) {
	case 0:
		settled = c.importTo(slot, id)
	case 1:
		settled = c.bundle(slot, 0, []bool{false}, func(ctx context.Context) (bool, error) {
			_, err := c.client.ForgetActor(ctx, actorName(slot.actors[0]))
			return false, err
		})
	default:
		// A part of what is deleted is pending, as a rule.
		settled = c.importTo(slot, id+"/pending") && c.deleteOf(slot, id) && c.importTo(slot, id+"/floor")
	}
	if settled {
		c.load.slots <- slot
	}
}

// importTo adds what a counter has at least, and likes.
func (c *caller) importTo(slot *adminSlot, name string) bool {
	return c.bundle(slot, floor, []bool{true, true}, func(ctx context.Context) (bool, error) {
		items := []client.ImportItem{{Key: keyName(slot.key), Delta: floor}}
		for _, actor := range slot.actors {
			items = append(items, client.ImportItem{Key: keyName(slot.key), Actor: actorName(actor)})
		}
		return false, c.client.Import(ctx, name, slices.Values(items), 0, nil)
	})
}

// deleteOf deletes a counter, and then once more with the same id.
func (c *caller) deleteOf(slot *adminSlot, id string) bool {
	del := func(ctx context.Context) (bool, error) {
		deleted, err := c.client.DeleteCounter(ctx, keyName(slot.key), id)
		return deleted.Duplicate, err
	}
	if !c.bundle(slot, -slot.total, []bool{false, false}, del) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	if repeated, err := del(ctx); err == nil && !repeated {
		c.load.note(fmt.Errorf("a Delete of %s was done twice", keyName(slot.key)))
	}
	return true
}

// bundle does what adds to a counter and sets likes of its actors, and records that as a change for each. It repeats it
// until it is answered: an error leaves it in doubt, as a part of it may have been done.
func (c *caller) bundle(slot *adminSlot, delta int64, likes []bool, do func(context.Context) (duplicate bool, err error)) bool {
	record := func(e history.Event) uint64 {
		e.Client = adminClients + c.id
		return c.load.d.history.Record(e)
	}
	var ops []uint64
	if delta != 0 {
		ops = append(ops, record(history.Event{Kind: history.Change, Entries: []history.Entry{{Key: slot.key, Delta: delta}}}))
	}
	for i, liked := range likes {
		like := &history.Like{Key: slot.key, Actor: slot.actors[i], Liked: liked}
		ops = append(ops, record(history.Event{Kind: history.Change, Like: like}))
	}
	for began := time.Now(); time.Since(began) < patience && !c.load.failed(); {
		ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
		duplicate, err := do(ctx)
		cancel()
		outcome := history.Applied
		switch {
		case err != nil:
			c.load.note(err)
			outcome = history.InDoubt
		case duplicate:
			outcome = history.Duplicate
		}
		for _, op := range ops {
			record(history.Event{Kind: history.Answer, Op: op, Outcome: outcome})
		}
		if err == nil {
			slot.total += delta
			c.load.calls.Add(1)
			c.read([]uint32{slot.key}, 0, false)
			return true
		}
		for _, op := range ops {
			record(history.Event{Kind: history.Repeat, Op: op})
		}
	}
	return false
}
