// Package chaos is the fault suite: real servers, workers, Redis and Postgres under load, while they are killed, cut
// off, slowed down, filled up and taken back in time, and a checker that follows what the clients were told. All of it
// is in the tests; docs/reliability.md says how to run it and what it has shown.
package chaos
