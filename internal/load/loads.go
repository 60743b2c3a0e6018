package main

import (
	"fmt"
	"math/rand/v2"
)

const (
	// requestCount is how many different requests ghz goes through, again and again.
	requestCount = 50_000
	manyKeys     = 1_000_000
	// skew is that of the Zipf distribution of keys: with 1.1 the hottest of a million has about a seventh of all calls.
	skew         = 1.1
	batchEntries = 1000
)

// load is one kind of load.
type load struct {
	name  string
	parts []part
}

// part is a share of a load that calls one method.
type part struct {
	method   string
	percent  int // of the calls under way
	requests []request
}

// request is one in JSON, which ghz takes for a template.
type request map[string]any

// name tells a part from the others of its load.
func (p part) name(load string) string {
	if p.percent == 100 {
		return load
	}
	return fmt.Sprintf("%s: %s", load, p.method)
}

func loads(seed uint64) []load {
	r := rand.New(rand.NewPCG(seed, seed))
	zipf := rand.NewZipf(r, skew, 1, manyKeys-1)
	key := func(n uint64) string { return fmt.Sprintf("load/post:%07d", n) }
	all := func(method string, one func() request) load {
		return load{parts: []part{{method, 100, repeat(method, one)}}}
	}
	named := func(name string, l load) load { l.name = name; return l }
	increment := func() request { return request{"key": key(zipf.Uint64()), "delta": "1", "request_id": "{{newUUID}}"} }
	get := func() request { return request{"key": key(zipf.Uint64())} }
	return []load{
		named("Increment, one key", all("Increment", func() request {
			return request{"key": key(0), "delta": "1", "request_id": "{{newUUID}}"}
		})),
		named("Increment, a million keys (Zipf)", all("Increment", increment)),
		named("Like, one key, distinct actors", all("Like", func() request {
			return request{"key": "load/likes:1", "actor": "user:{{newUUID}}", "request_id": "{{newUUID}}"}
		})),
		named("Get, a million keys (Zipf)", all("Get", get)),
		{"90% Get, 10% Increment", []part{{"Get", 90, repeat("Get", get)}, {"Increment", 10, repeat("Increment", increment)}}},
		named(fmt.Sprintf("BatchIncrement, %d entries", batchEntries), all("BatchIncrement", func() request {
			entries := make([]request, batchEntries)
			for i := range entries {
				entries[i] = request{"key": key(zipf.Uint64()), "delta": "1"}
			}
			return request{"entries": entries, "request_id": "{{newUUID}}"}
		})),
	}
}

// repeat makes the requests of a method, fewer of the large ones.
func repeat(method string, one func() request) []request {
	n := requestCount
	if method == "BatchIncrement" {
		n = requestCount / batchEntries
	}
	requests := make([]request, n)
	for i := range requests {
		requests[i] = one()
	}
	return requests
}
