//go:build race

package shard_test

// modelRunsByDefault: the models take one step at a time, which gives the race detector little to find and makes them several
// times as slow. "make test" runs them without it as well, at their full length.
const modelRunsByDefault = 50
