package chaos_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/client"
	"github.com/plusone-dev/plusone/internal/history"
	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// Whatever fails, no promise is broken.
func TestChaos(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			binary, err := plusonetest.Build(failpoints)
			if err != nil {
				t.Fatal(err)
			}
			d := s.start(t, binary)
			violations := d.run(s.faults, *faultsFlag, *opsFlag)
			table.add(s.name, result{faults: d.faults, stats: d.history.Stats(), doubts: d.history.InDoubt()})
			for _, v := range violations {
				t.Errorf("promise %d broken after %v: %s", v.Promise, v.At.Round(time.Millisecond), v.Text)
			}
			if d.load.unexpected != nil {
				t.Errorf("an error that no fault may cause: %v", d.load.unexpected)
			}
		})
	}
}

// start makes a deployment.
func (s scenario) start(t testing.TB, binary string) *deployment {
	name := fnv.New64a()
	_, _ = io.WriteString(name, s.name) // never fails
	d := &deployment{
		t: t, binary: binary, rollbacks: s.rollbacks, faults: map[string]int{},
		rand: rand.New(rand.NewPCG(*seedFlag, name.Sum64())),
	}
	var file io.Writer
	if *historyFlag != "" {
		f, err := os.Create(filepath.Join(*historyFlag, strings.ReplaceAll(s.name, " ", "-")+".history"))
		if err != nil {
			t.Fatal(err)
		}
		file = f
		t.Cleanup(func() {
			if err := d.history.Close(); err != nil {
				t.Error(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	d.history = history.NewRecorder(history.Config{Keys: keyNames(), Dedupe: dedupe}, file)
	s.deploy(d)
	d.startLoad()
	return d
}

// run does so many faults, or more until so many operations were checked, and compares all in the end. It stops early
// when a promise is broken.
func (d *deployment) run(faults []fault, count int, ops int64) []history.Violation {
	d.load.progress(200)
	// Each kind once, in random order, and then any.
	var queue []fault
	started := time.Now()
	over := func() bool { return *limitFlag > 0 && time.Since(started) > *limitFlag }
	for done := 0; (done < count || d.history.Stats().Checked() < ops) && !d.load.failed() && !over(); done++ {
		if len(queue) == 0 {
			queue = slices.Clone(faults)
			d.rand.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
		}
		f := queue[0]
		queue = queue[1:]
		d.inject(f)
		if done%20 == 19 && !d.load.failed() {
			d.audit()
		}
	}
	if !d.load.failed() {
		d.compare()
	}
	return d.history.Violations()
}

// inject does one fault, and waits until plusone has got over it by itself.
func (d *deployment) inject(f fault) {
	d.t.Helper()
	began := time.Now()
	d.history.Record(history.Event{Kind: history.Unsettle})
	name := f.do(d)
	if name == "" {
		name = f.name
	}
	d.heal()
	d.load.progress(callers)
	d.drain()
	if !d.load.failed() {
		d.history.Record(history.Event{Kind: history.Settle})
		d.load.progress(2 * callers)
	}
	took := time.Since(began).Round(time.Millisecond)
	if name == notReached {
		d.t.Logf("%s, %s: %v", f.name, name, took)
		return
	}
	d.t.Logf("%s: %v", name, took)
	d.faults[name]++
}

// compare ends the load and compares all that is told of the counters then, by anyone, with what was acknowledged.
func (d *deployment) compare() {
	d.t.Helper()
	d.load.stop()
	if n := d.history.InDoubt(); n > 0 && !d.rollbacks {
		d.t.Errorf("%d changes are still in doubt", n)
	}
	if d.load.failed() {
		return
	}
	c := d.dial(client.WithTimeout(patience))
	ctx := context.Background()
	values := map[uint32]history.Value{}
	for names := range slices.Chunk(d.load.keys, 100) {
		counts, err := c.BatchGet(ctx, names, client.Fresh())
		if err != nil {
			d.t.Fatal(err)
		}
		for _, count := range counts {
			values[uint32(len(values))] = history.Value{Count: count.Count, Likes: count.Likes, Stale: count.Stale}
		}
	}
	d.observe("a fresh read", values)
	var totals map[uint32]history.Value
	d.eventually("the totals of the ledger are those of a fresh read", func() bool {
		totals = d.totals()
		return maps.Equal(totals, values) || d.worker == nil
	})
	d.observe("counter_totals", totals)
	d.observe("counter_history", d.sums(totals))
	d.compareLikes(c)
	if d.sqlite != "" {
		d.nodes[0].Terminate() // of a SQLite file there is one process
	}
	d.audit()
}

// observe records what a source told of all keys.
func (d *deployment) observe(source string, values map[uint32]history.Value) {
	e := history.Event{Kind: history.Observe, Source: source}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		e.Keys, e.Values = append(e.Keys, key), append(e.Values, values[key])
	}
	d.history.Record(e)
}

// totals are those of the ledger.
func (d *deployment) totals() map[uint32]history.Value {
	values := map[uint32]history.Value{}
	_ = d.query(`SELECT key, count, likes FROM counter_totals`, func(scan func(...any) error) error {
		var name string
		var v history.Value
		if err := scan(&name, &v.Count, &v.Likes); err != nil {
			return err
		}
		values[keyIndex(name)] = v
		return nil
	}) // asked again, if it was away
	return values
}

// sums are what the history of the ledger adds up to.
func (d *deployment) sums(totals map[uint32]history.Value) map[uint32]history.Value {
	values := map[uint32]history.Value{}
	err := d.query(`SELECT key, CAST(sum(delta) AS bigint) FROM counter_history GROUP BY key`, func(scan func(...any) error) error {
		var name string
		var v history.Value
		if err := scan(&name, &v.Count); err != nil {
			return err
		}
		v.Likes = totals[keyIndex(name)].Likes // history does not tell
		values[keyIndex(name)] = v
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return values
}

func keyIndex(name string) uint32 {
	var i uint32
	if _, err := fmt.Sscanf(name, "chaos/key:%d", &i); err != nil {
		panic("a counter that nobody has named: " + name)
	}
	return i
}

// compareLikes compares the table of likes and what servers tell of them.
func (d *deployment) compareLikes(c *client.Client) {
	d.t.Helper()
	liked := map[[2]uint32]bool{}
	err := d.query(`SELECT key, actor, liked FROM likes`, func(scan func(...any) error) error {
		var name, who string
		var is bool
		if err := scan(&name, &who, &is); err != nil {
			return err
		}
		var actor uint32
		if _, err := fmt.Sscanf(who, "user:%d", &actor); err != nil {
			return err
		}
		liked[[2]uint32{keyIndex(name), actor}] = is
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	names := d.load.keys[hotKeys : hotKeys+likedKeys]
	for actor := range uint32(actorCount) {
		states, err := c.Liked(context.Background(), actorName(actor), names)
		if err != nil {
			d.t.Fatal(err)
		}
		told := history.Event{Kind: history.ObserveLikes, Source: "BatchGetLikes", Actor: actor}
		table := history.Event{Kind: history.ObserveLikes, Source: "the table of likes", Actor: actor}
		for i, state := range states {
			key := hotKeys + uint32(i)
			told.Keys, told.Values = append(told.Keys, key), append(told.Values, history.Value{Liked: state.Liked})
			table.Keys, table.Values = append(table.Keys, key), append(table.Values, history.Value{Liked: liked[[2]uint32{key, actor}]})
		}
		d.history.Record(told)
		d.history.Record(table)
	}
}
