package shard

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// markerTrust is how long a marker is relied on after Redis last confirmed it. It is well below
// afterMarker, so that a marker which a rollback took away is not used to route ids elsewhere than
// servers do that never knew it.
const markerTrust = 30 * time.Second

// markers are the spread markers that this server knows of. Lookups take no lock. There are at most
// RedisConfig.MaxSpread a shard.
type markers struct {
	started time.Time
	mu      sync.Mutex // serialises changes
	known   atomic.Pointer[map[string]*knownMarker]
}

type knownMarker struct {
	marker    Marker
	confirmed atomic.Int64 // since started
}

func newMarkers() *markers {
	m := &markers{started: time.Now()}
	m.known.Store(&map[string]*knownMarker{})
	return m
}

// get returns the marker of a key, 0 if none is known or it was not confirmed lately.
func (m *markers) get(key string) Marker {
	known := *m.known.Load()
	if len(known) == 0 {
		return 0
	}
	k := known[key]
	if k == nil || time.Since(m.started)-time.Duration(k.confirmed.Load()) > markerTrust {
		return 0
	}
	return k.marker
}

// learn takes over what a home shard said of a key, 0 meaning that it is not spread.
func (m *markers) learn(key string, marker Marker) {
	known := *m.known.Load()
	if marker == 0 && len(known) == 0 {
		return
	}
	now := int64(time.Since(m.started))
	if k := known[key]; k != nil && k.marker == marker {
		k.confirmed.Store(now)
		return
	} else if k == nil && marker == 0 {
		return
	}
	m.change(key, marker, now)
}

// change is apart from learn, which nearly always finds nothing to change, because it keeps a map in memory of its own.
func (m *markers) change(key string, marker Marker, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := maps.Clone(*m.known.Load())
	if marker == 0 {
		delete(known, key)
	} else {
		k := &knownMarker{marker: marker}
		k.confirmed.Store(now)
		known[key] = k
	}
	m.known.Store(&known)
}

// keys returns the keys whose marker is known.
func (m *markers) keys() []string {
	known := *m.known.Load()
	keys := make([]string, 0, len(known))
	for key := range known {
		keys = append(keys, key)
	}
	return keys
}
