// Package shard is the live store of sharded mode: counters spread over N shards in Redis, changed and
// read by Lua scripts under the window protocol of docs/design.md.
package shard
