package shard

import (
	"crypto/sha1" // EVALSHA names scripts by their SHA-1
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/redis/rueidis"
)

// The clock of lib.lua, and what tests may put in its place: a clock that stands still until it is set.
const (
	redisClock = `local function microseconds()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
`
	keyClock = `local function microseconds() return tonumber(call('GET', '%s')) end
`
)

// NewClockedRedis prepares the scripts with one change: their time is what clockKey holds, in Unix
// microseconds. Times to live still run by the true clock.
func NewClockedRedis(client rueidis.Client, cfg RedisConfig, clockKey string) (*Redis, error) {
	r, err := NewRedis(client, cfg)
	if err != nil {
		return nil, err
	}
	for _, s := range []*script{
		r.write, r.read, r.likes, r.load, r.spread, r.pending, r.seal, r.begin, r.move, r.end, r.discard, r.restore, r.sweep,
	} {
		if strings.Count(s.body, redisClock) != 1 || strings.Count(s.body, "'TIME'") != 1 {
			return nil, fmt.Errorf("script does not take its time from where it should:\n%s", s.body)
		}
		s.body = strings.Replace(s.body, redisClock, fmt.Sprintf(keyClock, clockKey), 1)
		sum := sha1.Sum([]byte(s.body))
		s.sha = hex.EncodeToString(sum[:])
	}
	return r, nil
}

// RememberLikers has a store that was not used yet remember who likes a key, if the ledger has so many actors of it at most, as soon
// as it was asked once.
func (s *Store) RememberLikers(actors int) {
	s.states.likers.likersLimits = likersLimits{many: 1, keys: 1, actors: actors}
}
