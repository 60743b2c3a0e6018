package checker

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/plusone-dev/plusone/internal/guard"
)

// maxRefusalTTL is how long a refusal is kept of which the checker does not say for how long: the actor may be about to do
// what was asked of him.
const maxRefusalTTL = 5 * time.Second

// key stands for a question. It is a hash, so that what is kept is small and holds no token.
type key [sha256.Size]byte

func keyOf(q *guard.Question) key {
	var room [512]byte
	text := room[:0]
	for _, part := range [...]string{q.Method, q.Caller, q.Actor, q.Namespace, q.Token} {
		text = binary.AppendUvarint(text, uint64(len(part))) // so that no two questions read the same
		text = append(text, part...)
	}
	return sha256.Sum256(text)
}

// cache keeps answers until their time has passed. A nil one keeps none. It may be used concurrently.
type cache struct {
	entries *otter.Cache[key, kept]
	ttl     time.Duration
	start   time.Time
}

type kept struct {
	answer
	until time.Duration // since the start of the cache
}

func newCache(entries int, ttl time.Duration) (*cache, error) {
	// Otter's own expiry would take a goroutine and a clock. Entries whose time has passed go as others come.
	made, err := otter.New(&otter.Options[key, kept]{MaximumSize: entries, Logger: &otter.NoopLogger{}})
	if err != nil {
		return nil, err
	}
	return &cache{entries: made, ttl: ttl, start: time.Now()}, nil
}

func (c *cache) get(k key) (answer, bool) {
	if c == nil {
		return answer{}, false
	}
	found, ok := c.entries.GetIfPresent(k)
	if !ok || time.Since(c.start) >= found.until {
		return answer{}, false
	}
	return found.answer, true
}

func (c *cache) put(k key, a answer) {
	if c == nil {
		return
	}
	ttl := c.ttl
	switch {
	case a.ttl >= 0:
		ttl = min(ttl, a.ttl)
	case !a.allowed:
		ttl = min(ttl, maxRefusalTTL)
	}
	if ttl > 0 {
		c.entries.Set(k, kept{answer: a, until: time.Since(c.start) + ttl})
	}
}
