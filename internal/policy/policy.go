// Package policy says what may count in which namespace: what a policy file states, and what it means for a key.
package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/plusone-dev/plusone/internal/limit"
)

// Default is the name of the policy of all namespaces that no other one is for.
const Default = "*"

// DeploymentsThreshold is the HotThreshold of a policy that states none.
const DeploymentsThreshold = -1

// Policy is what holds for a namespace. It does not change once it is parsed.
type Policy struct {
	// Name is the namespace that the policy is for, or the beginning of several and a *, or Default.
	Name string
	// MaxDelta is the largest change of one entry, either way; 0 is the server's.
	MaxDelta int64
	// Increments, and Likes with unlikes, say what is allowed.
	Increments, Likes bool
	// Anonymous says whether a change may count that names no actor, unless there is a Guard: it is asked about an actor.
	Anonymous bool
	// Guard says that a guard is asked about each change.
	Guard bool
	// OncePer is that of increments that name an actor and no once_per; 0 is none.
	OncePer time.Duration
	// DedupeWindow is how old a request id may be that says when it was made; 0 is what the store accepts.
	DedupeWindow time.Duration
	// ActorKey limits what an actor does to a key, Actor what an actor does, Caller what a caller does. Nil is no limit.
	ActorKey, Actor, Caller *Limit
	// History is hour, minute or none, or empty for the deployment's.
	History string
	// HotThreshold is how many changes a second, on one server, make a key hot; 0 never does.
	HotThreshold int
	// Shards is over how many shards a key is spread that is found hot; 0 is the deployment's, all.
	Shards int
}

// Limit is a rate and the name of the policy that states it: policies that take a limit over from the default share its
// buckets.
type Limit struct {
	Rate  limit.Rate
	Scope string
	// Buckets is the scope of buckets. It has the rate in it: another one begins with full buckets, or who had used up a
	// limit would have nothing of it being raised.
	Buckets string
}

func newLimit(rate limit.Rate, scope string) *Limit {
	return &Limit{Rate: rate, Scope: scope, Buckets: fmt.Sprintf("%s %d/%v/%d", scope, rate.Tokens, rate.Per, rate.Burst)}
}

// NamesActor reports whether each change must name its actor.
func (p *Policy) NamesActor() bool { return !p.Anonymous || p.Guard }

// Limits reports whether any limit holds.
func (p *Policy) Limits() bool { return p.ActorKey != nil || p.Actor != nil || p.Caller != nil }

// String is what the policy states or takes over, in the words of the file.
func (p *Policy) String() string {
	var b strings.Builder
	b.WriteString(shownName(p.Name))
	b.WriteByte(':')
	for _, s := range settings {
		if text := s.show(p); text != "" {
			b.WriteString(" " + s.name + "=" + text)
		}
	}
	for _, s := range limitSettings {
		if l := *s.field(p); l != nil {
			b.WriteString(" limits." + s.name + `="` + l.Rate.String() + `"`)
			if l.Scope != p.Name {
				b.WriteString(" (shared with " + shownName(l.Scope) + ")")
			}
		}
	}
	return b.String()
}

func shownName(name string) string {
	if name == Default {
		return "default"
	}
	return "namespaces." + name
}

// Set is the policies of a file. It does not change.
type Set struct {
	fallback *Policy
	names    map[string]*Policy
	// starts are policies for namespaces that begin with something, and lengths how long those beginnings are, the
	// longest first.
	starts  map[string]*Policy
	lengths []int
	// all are the policies in the order of the file, the default first.
	all []*Policy
}

// Of returns the policy of a namespace: the one of that name, else the one with the longest beginning of it, else the
// default.
func (s *Set) Of(namespace string) *Policy {
	if p, ok := s.names[namespace]; ok {
		return p
	}
	for _, n := range s.lengths {
		if n <= len(namespace) {
			if p, ok := s.starts[namespace[:n]]; ok {
				return p
			}
		}
	}
	return s.fallback
}

// All returns the policies in the order of the file, the default first.
func (s *Set) All() []*Policy { return s.all }
