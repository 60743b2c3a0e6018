package shard

import "strconv"

// Marker says since when a key is spread, and over how many shards (rule 9); 0 is none. It is set when the key is found
// hot and stays as it is, since the places of changes follow from it. Two markers of a key are compared for equality
// alone: of different widths, the larger one need not be the later.
//
// A key that is spread over all shards has the time of the Redis clock, in Unix milliseconds. One that is spread over
// fewer has it times markerWidths plus their number. That is above 2^50, which no time is, and below 2^53, up to which Lua
// is exact, from 2004 to 2248. Scripts compare markers, and make them (spread.lua, load.lua); what they mean is told
// here alone.
type Marker int64

const (
	// markerWidths is above each width: one of MaxShards is that of all shards.
	markerWidths = MaxShards
	// leastWide is below each marker that has a width, and above each time.
	leastWide Marker = 1 << 50
	// ImpliedMarker is what a load has for a key that was spread, as its rows away from home say, by a marker that was lost
	// before it reached the ledger. It becomes a marker of that moment (IMPLIED in load.lua).
	ImpliedMarker Marker = 1
)

// NewMarker is the marker of a key that was spread at a time over width shards, from 1 to MaxShards - 1, or over all if
// width is 0.
func NewMarker(time int64, width int) Marker {
	if width == 0 {
		return Marker(time)
	}
	return Marker(time*markerWidths + int64(width))
}

// String is the number, as scripts have it.
func (m Marker) String() string { return strconv.FormatInt(int64(m), 10) }

// Time is since when the key is spread, in Unix milliseconds.
func (m Marker) Time() int64 {
	if m < leastWide {
		return int64(m)
	}
	return int64(m / markerWidths)
}

// Width is over how many of all shards the key is spread.
func (m Marker) Width(shards int) int {
	width := int(m % markerWidths)
	if m < leastWide || width == 0 || width > shards {
		return shards
	}
	return width
}

// place is the shard to which a change of a spread key goes that is told from others by a text: its id, or its actor. Of a key
// that is not spread over all shards they are the first of its home and those that follow.
func (m Marker) place(home int, by string, shards int) int {
	if width := m.Width(shards); width < shards {
		return (home + hash(by, width)) % shards
	}
	return hash(by, shards)
}
