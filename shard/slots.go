package shard

import (
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// clusterSlots is the number of hash slots of a Redis Cluster.
const clusterSlots = 16384

// MaxShards bounds the number of shards. About four a cluster master are plenty.
const MaxShards = 1024

// Home is the shard on which a key is counted while it is cold, of shards in all. It never changes.
func Home(key string, shards int) int { return hash(key, shards) }

func hash(s string, shards int) int {
	return int(xxhash.Sum64String(s) % uint64(shards))
}

// Tags returns the hash tags of the shards. Their slots are evenly spaced, in the middle of equal ranges, so
// that masters with equal ranges get equal shares of the shards.
func Tags(shards int) []string {
	tags := make([]string, shards)
	wanted := make(map[uint16]int, shards)
	for i := range shards {
		wanted[uint16((2*i+1)*clusterSlots/(2*shards))] = i
	}
	for n := 0; len(wanted) > 0; n++ {
		tag := strconv.FormatInt(int64(n), 36)
		if i, ok := wanted[slot(tag)]; ok {
			tags[i] = tag
			delete(wanted, slot(tag))
		}
	}
	return tags
}

// slot is the hash slot of a tag: CRC-16/XMODEM, as in the Redis Cluster specification.
func slot(tag string) uint16 {
	var crc uint16
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % clusterSlots
}
