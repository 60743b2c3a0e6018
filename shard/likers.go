package shard

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/plusone-dev/plusone/internal/counter"
)

// likersLimits say what is remembered, and when.
type likersLimits struct {
	// many is from how many likes of a key in one question to the ledger it is one that many like.
	many int
	// keys is how many keys are remembered at most, actors how many actors of each, of 4 bytes. What is above that is asked about.
	keys, actors int
	// ripe is how long a key must have been liked by many, or spread, until a snapshot is loaded: by then each of its shards should
	// have had a window drained, or the snapshot is soon of no use. HourRipe is that of a new hour, whose own windows it takes, and
	// up to a minute more: not all servers read at the same time.
	ripe, hourRipe time.Duration
	// pause is how long no snapshot of a key is loaded after one was of no use or could not be loaded.
	pause time.Duration
	// margin is how long before the end of an hour its snapshots are not relied on any more.
	margin time.Duration
}

var defaultLikersLimits = likersLimits{
	many: gatherStates / 2, keys: 8, actors: 1 << 20, ripe: 20 * time.Second, hourRipe: 30 * time.Second,
	pause: 30 * time.Second, margin: 10 * time.Second,
}

// likersTimeout is how long a snapshot may take.
const likersTimeout = 10 * time.Second

// likers remembers who the ledger has a state of, of keys that are liked by many at once, so that it need not be asked about
// everybody else: no other part of a like takes as long. What is remembered is a snapshot, which the script takes for as long as the
// membership of the hour has all that was set since (rule 10).
//
// It is used by the state loader's run alone. Snapshots are loaded meanwhile, one at a time.
type likers struct {
	likersLimits
	ledger  Ledger
	shards  int
	clock   *clock
	metrics *Metrics
	log     *slog.Logger

	liked   map[string]*likedKey
	counts  map[string]int // of the likes in a question, by key
	loading bool
	wanted  chan *likersSnapshot // has room for what is loading, and loaded too
	loaded  chan *likersSnapshot
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// likedKey is a key that many like. Its moments are of the Redis clock, in Unix ms.
type likedKey struct {
	lately   int64           // when many liked it last
	from     int64           // when a snapshot of it may be loaded
	snapshot *likersSnapshot // nil if there is none
}

// likersSnapshot is who the ledger has a state of.
type likersSnapshot struct {
	key  string
	hour int64 // in which it is loaded, by its start in Unix ms
	err  error
	// hashes are those of the actors, by their upper half, and starts is where those of each half begin: so a look-up takes two
	// looks into memory that is in no cache. TooMany says that there are none, since they would be too many.
	hashes, starts []uint32
	tooMany        bool
	// answer is what the ledger says of anybody else.
	answer ledgerAnswer
}

func newLikers(s *Store, ledger Ledger) *likers {
	ctx, cancel := context.WithCancel(context.Background())
	l := &likers{
		likersLimits: defaultLikersLimits,
		ledger:       ledger, shards: s.cfg.Shards, clock: s.clock, metrics: s.metrics, log: s.cfg.Logger,
		liked: map[string]*likedKey{}, counts: map[string]int{},
		wanted: make(chan *likersSnapshot, 1), loaded: make(chan *likersSnapshot, 1), stop: cancel,
	}
	l.hourRipe += rand.N(time.Minute)
	l.stopped.Go(func() { l.run(ctx) })
	return l
}

func (l *likers) close() {
	l.stop()
	l.stopped.Wait()
}

// run loads what is wanted.
func (l *likers) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-l.wanted:
			s.err = l.load(ctx, s)
			if s.err != nil {
				l.metrics.likeErrors.Inc()
				l.log.WarnContext(ctx, "who likes a key was not read, will be tried again", "error", s.err)
			}
			l.loaded <- s
		}
	}
}

// load loads who the ledger has a state of. Those with the same hash are not told apart: of an actor who shares one the ledger is
// asked.
func (l *likers) load(ctx context.Context, s *likersSnapshot) error {
	ctx, cancel := context.WithTimeout(ctx, likersTimeout)
	defer cancel()
	watermarks, err := l.ledger.Likers(ctx, s.key, l.actors+1, func(actor []byte) {
		s.hashes = append(s.hashes, uint32(xxhash.Sum64(actor)))
	})
	if err == nil && len(watermarks) != l.shards {
		err = errLedgerAnswer
	}
	if err != nil {
		return err
	}
	if s.tooMany = len(s.hashes) > l.actors; s.tooMany {
		s.hashes = nil
		return nil
	}
	s.group()
	s.answer = ledgerAnswer{LedgerLikes: LedgerLikes{Watermarks: watermarks, States: make([]counter.LikeState, 1)}}
	return nil
}

// group puts the hashes in order.
func (s *likersSnapshot) group() {
	s.starts = make([]uint32, 1<<16+1)
	for _, hash := range s.hashes {
		s.starts[hash>>16+1]++
	}
	for half := range 1 << 16 {
		s.starts[half+1] += s.starts[half]
	}
	grouped, next := make([]uint32, len(s.hashes)), slices.Clone(s.starts)
	for _, hash := range s.hashes {
		grouped[next[hash>>16]] = hash
		next[hash>>16]++
	}
	s.hashes = grouped
}

// mayHave reports whether the ledger may have a state of the actor.
func (s *likersSnapshot) mayHave(actor string) bool {
	hash := uint32(xxhash.Sum64String(actor))
	half := hash >> 16
	return s.tooMany || slices.Contains(s.hashes[s.starts[half]:s.starts[half+1]], hash)
}

// answer answers those likes of which it is remembered that the ledger has nothing, and returns the others. After a home that was asked
// for a pair comes the ledger itself. A like that the script was asked for before, and did not know, says that membership has not all
// that came after the snapshot.
func (l *likers) answer(loads []*stateLoad) []*stateLoad {
	l.takeOver()
	if len(l.liked) == 0 {
		return loads
	}
	hour := counter.PeriodStart(l.clock.milliseconds()+l.margin.Milliseconds(), time.Hour)
	rest := make([]*stateLoad, 0, len(loads))
	for _, load := range loads {
		pair := load.job.change.Pair()
		liked := l.liked[pair.Key]
		if load.behind || liked == nil || liked.snapshot == nil || liked.snapshot.hour != hour || liked.snapshot.mayHave(pair.Actor) {
			rest = append(rest, load)
			continue
		}
		if !load.first {
			l.forget(pair.Key)
			rest = append(rest, load)
			continue
		}
		load.ledger, load.at = &liked.snapshot.answer, 0
	}
	l.metrics.rememberedLikes.Add(float64(len(loads) - len(rest)))
	return rest
}

// takeOver takes over a snapshot that was loaded.
func (l *likers) takeOver() {
	select {
	case s := <-l.loaded:
		l.loading = false
		if liked := l.liked[s.key]; liked != nil {
			liked.snapshot = s
			if s.err != nil {
				l.forget(s.key)
			}
		}
	default:
	}
}

// forget forgets a snapshot that is of no use.
func (l *likers) forget(key string) {
	if liked := l.liked[key]; liked != nil && liked.snapshot != nil {
		liked.snapshot, liked.from = nil, l.clock.milliseconds()+l.pause.Milliseconds()
	}
}

// note notes of which likes the ledger was asked, and has a snapshot loaded of a key that many like.
func (l *likers) note(asked []*stateLoad) {
	if len(asked) < l.many {
		return
	}
	clear(l.counts)
	now := l.clock.milliseconds()
	hour := counter.PeriodStart(now, time.Hour)
	hourRipe := hour + l.hourRipe.Milliseconds()
	for _, load := range asked {
		key := load.job.change.Entries[0].Key
		if l.counts[key]++; l.counts[key] != l.many {
			continue
		}
		spreadRipe := load.job.parts[0].spread.Time() + l.ripe.Milliseconds()
		if liked := l.hot(key, now); liked != nil && now >= max(liked.from, spreadRipe, hourRipe) {
			l.want(key, liked, hour)
		}
	}
}

// hot returns a key that many like now, nil if there are too many of those.
func (l *likers) hot(key string, now int64) *likedKey {
	liked := l.liked[key]
	if liked == nil {
		if len(l.liked) >= l.keys {
			maps.DeleteFunc(l.liked, func(_ string, k *likedKey) bool { return now-k.lately > l.pause.Milliseconds() })
		}
		if len(l.liked) >= l.keys {
			return nil
		}
		liked = &likedKey{from: now + l.ripe.Milliseconds()}
		l.liked[key] = liked
	}
	liked.lately = now
	return liked
}

// want has a snapshot loaded, unless one is loading, or there is one of this hour.
func (l *likers) want(key string, liked *likedKey, hour int64) {
	if l.loading || liked.snapshot != nil && liked.snapshot.hour == hour {
		return
	}
	l.loading, liked.snapshot = true, nil
	l.wanted <- &likersSnapshot{key: key, hour: hour}
}
