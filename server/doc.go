// Package server answers the plusone.v1 API over gRPC: it checks requests, asks the live store, keeps a
// bounded cache of counts, maps errors to statuses, sheds load, and serves metrics and health over HTTP.
//
// # Basics
//
// New assembles a Server around a Store and the ledger's Reports, Serve runs it on two listeners, Shutdown ends it.
//
// A change goes to the store as soon as it has passed the checks; combining changes is the store's work. A
// read is answered from the cache if it may be: the cached value's fetch began no longer before the request
// than max_age, and its as_of is not before min_as_of. Otherwise the store is asked, once for all the keys
// of a request that are missing, and once for all the requests that miss a key at the same time. Keys that
// are read often are fetched again shortly before their values are 5 s old (or whatever max_age their readers
// ask), so that their readers do not wait.
//
// A like is acknowledged by the store. Its count is read afterwards and left in the cache; if it cannot be read
// soon, the answer goes without. Lists come from the ledger, past the cache, and their page tokens say where a
// page begins: no server keeps anything between two pages.
//
// # Caveats
//
// When the store cannot answer, a read gets the last known value, marked stale, whatever max_age and
// min_as_of it asked for; if none is known it fails. How long a value is known depends only on the size of
// the cache.
//
// A store call ends a little before the caller's deadline, so that the answer comes from the server and not
// from the caller's own clock. A change that is cut off this way fails as OUTCOME_UNKNOWN.
//
// The entries of a batch are summed in their order, and an entry at which the sum leaves int64 is invalid.
// A key whose entries sum to 0 is not changed, and its request_id is recorded like any other.
package server
