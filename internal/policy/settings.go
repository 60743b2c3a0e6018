package policy

import (
	"fmt"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/limit"
)

// none lifts what the default states.
const none = "none"

// Bounds are what a server is set to, which its policies stay within.
type Bounds struct {
	// MaxDelta and DedupeWindow are the largest that a policy may state.
	MaxDelta     int64
	DedupeWindow time.Duration
	// Shards is how many shards there are.
	Shards int
	// Guard says that there is one to ask.
	Guard bool
}

// newDefault is the policy of a file that states none.
func newDefault() *Policy {
	return &Policy{Name: Default, Increments: true, Likes: true, Anonymous: true, HotThreshold: DeploymentsThreshold}
}

// setting is one of a policy. Read changes the policy, show returns what it states, or "" for what is so anyway.
type setting struct {
	name string
	read func(p *parser, n *yaml.Node, policy *Policy)
	show func(policy *Policy) string
}

var settings = []setting{
	{
		"max_delta", func(p *parser, n *yaml.Node, policy *Policy) {
			policy.MaxDelta = p.integer(n, "max_delta", 1, p.bounds.MaxDelta)
		},
		func(policy *Policy) string { return shownNumber(policy.MaxDelta, 0) },
	},
	boolean("increments", true, func(policy *Policy) *bool { return &policy.Increments }),
	boolean("likes", true, func(policy *Policy) *bool { return &policy.Likes }),
	boolean("anonymous", true, func(policy *Policy) *bool { return &policy.Anonymous }),
	boolean("guard", false, func(policy *Policy) *bool { return &policy.Guard }),
	{
		"once_per", func(p *parser, n *yaml.Node, policy *Policy) {
			policy.OncePer = 0
			if n.Value != none {
				policy.OncePer = p.duration(n, "once_per", time.Millisecond, counter.MaxOncePer)
			}
		},
		func(policy *Policy) string { return shownDuration(policy.OncePer) },
	},
	{
		"dedupe_window", func(p *parser, n *yaml.Node, policy *Policy) {
			policy.DedupeWindow = p.duration(n, "dedupe_window", time.Second, p.bounds.DedupeWindow)
		},
		func(policy *Policy) string { return shownDuration(policy.DedupeWindow) },
	},
	{
		"history", func(p *parser, n *yaml.Node, policy *Policy) {
			switch n.Value {
			case "hour", "minute", none:
				policy.History = n.Value
			default:
				p.problem(n, "history must be hour, minute or none, not %s", kindOf(n))
			}
		},
		func(policy *Policy) string { return policy.History },
	},
	{
		"hot_threshold", func(p *parser, n *yaml.Node, policy *Policy) {
			policy.HotThreshold = int(p.integer(n, "hot_threshold", 0, 1_000_000_000))
		},
		func(policy *Policy) string { return shownNumber(int64(policy.HotThreshold), DeploymentsThreshold) },
	},
	{
		"shards", func(p *parser, n *yaml.Node, policy *Policy) {
			policy.Shards = int(p.integer(n, "shards", 1, int64(p.bounds.Shards)))
		},
		func(policy *Policy) string { return shownNumber(int64(policy.Shards), 0) },
	},
}

// limitSettings are those of the limits of a policy.
var limitSettings = []struct {
	name  string
	field func(policy *Policy) **Limit
}{
	{limit.ActorKey.String(), func(policy *Policy) **Limit { return &policy.ActorKey }},
	{limit.Actor.String(), func(policy *Policy) **Limit { return &policy.Actor }},
	{limit.Caller.String(), func(policy *Policy) **Limit { return &policy.Caller }},
}

// policy changes a policy, which is as the default, to what a mapping states.
func (p *parser) policy(n *yaml.Node, policy *Policy) {
	var anonymous, guard *yaml.Node // where they are stated
	readers := map[string]func(*yaml.Node){
		"limits": func(n *yaml.Node) { p.limits(n, policy) },
	}
	for _, s := range settings {
		readers[s.name] = func(n *yaml.Node) {
			s.read(p, n, policy)
			switch s.name {
			case "anonymous":
				anonymous = n
			case "guard":
				guard = n
			}
		}
	}
	p.mapping(n, "a policy", readers)
	if anonymous != nil && policy.Anonymous && policy.Guard {
		p.problem(anonymous, "anonymous must not be true with a guard: "+
			"it is asked about an actor, so leaving out the actor would be a way past it")
	}
	if guard != nil && policy.Guard && !p.bounds.Guard {
		p.problem(guard, "guard is true, and the server has no guard to ask")
	}
}

func (p *parser) limits(n *yaml.Node, policy *Policy) {
	readers := map[string]func(*yaml.Node){}
	for _, s := range limitSettings {
		readers[s.name] = func(n *yaml.Node) {
			field := s.field(policy)
			*field = nil
			if n.Value == none {
				return
			}
			text, ok := p.text(n, "limits."+s.name)
			if !ok {
				return
			}
			rate, err := limit.ParseRate(text)
			if err != nil {
				p.problem(n, "limits.%s: %v", s.name, err)
			}
			*field = newLimit(rate, policy.Name)
		}
	}
	p.mapping(n, "limits", readers)
}

// boolean is a setting that is true or false.
func boolean(name string, usual bool, field func(*Policy) *bool) setting {
	return setting{
		name, func(p *parser, n *yaml.Node, policy *Policy) {
			switch {
			case n.Kind == yaml.ScalarNode && n.Value == "true":
				*field(policy) = true
			case n.Kind == yaml.ScalarNode && n.Value == "false":
				*field(policy) = false
			default:
				p.problem(n, "%s must be true or false, not %s", name, kindOf(n))
			}
		},
		func(policy *Policy) string {
			if value := *field(policy); value != usual {
				return strconv.FormatBool(value)
			}
			return ""
		},
	}
}

func (p *parser) text(n *yaml.Node, name string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.Tag == "!!null" {
		p.problem(n, "%s lacks a value", name)
		return "", false
	}
	return n.Value, true
}

func (p *parser) integer(n *yaml.Node, name string, low, high int64) int64 {
	value, err := strconv.ParseInt(n.Value, 10, 64)
	if n.Kind != yaml.ScalarNode || err != nil || value < low || value > high {
		p.problem(n, "%s must be a whole number from %d to %d, not %s", name, low, high, kindOf(n))
	}
	return value
}

func (p *parser) duration(n *yaml.Node, name string, low, high time.Duration) time.Duration {
	value, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		p.problem(n, "%s must be a time such as 90s, 5m or 24h, not %s", name, kindOf(n))
	case value < low || value > high:
		p.problem(n, "%s must be from %v to %v, not %v", name, low, high, value)
	case value%time.Millisecond != 0:
		p.problem(n, "%s must be in whole milliseconds, not %v", name, value)
	}
	return value
}

func shownNumber(n, usual int64) string {
	if n == usual {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func shownDuration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprint(d)
}
