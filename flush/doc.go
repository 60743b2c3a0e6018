// Package flush is the durable side of plusone: the ledgers in Postgres and SQLite, the worker that drains
// Redis windows into the ledger, and the store that works on a ledger directly.
package flush
