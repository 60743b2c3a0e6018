//go:build !race

package shard_test

const modelRunsByDefault = 300
