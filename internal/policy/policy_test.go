package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/limit"
)

var bounds = Bounds{MaxDelta: 1_000_000, DedupeWindow: 5 * time.Minute, Shards: 8, Guard: true}

func parse(t testing.TB, text string) *Set {
	t.Helper()
	set, err := Parse([]byte(text), bounds)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return set
}

const example = `
default:
  max_delta: 1000
  limits:
    caller: 5000/1s burst 10000
namespaces:
  views:
    once_per: 1h
    anonymous: false
    dedupe_window: 1m
    history: minute
    hot_threshold: 0
    shards: 8
    limits: {actor_key: 1/10s, actor: 100/1m}
  "exp-*":
    history: none
    likes: false
    limits: {caller: none}
  "exp-a*": {increments: false, guard: true}
  exp-all:
  "": {max_delta: 7}
`

func TestParse(t *testing.T) {
	t.Parallel()
	set := parse(t, example)
	rate := func(text, scope string) *Limit {
		r, err := limit.ParseRate(text)
		if err != nil {
			t.Fatal(err)
		}
		return newLimit(r, scope)
	}
	shared := rate("5000/1s burst 10000", "*")
	want := map[string]Policy{
		"other": {Name: "*", MaxDelta: 1000, Increments: true, Likes: true, Anonymous: true, Caller: shared, HotThreshold: -1},
		"views": {
			Name: "views", MaxDelta: 1000, Increments: true, Likes: true, OncePer: time.Hour, DedupeWindow: time.Minute, History: "minute",
			ActorKey: rate("1/10s", "views"), Actor: rate("100/1m", "views"), Caller: shared, Shards: 8,
		},
		"exp-b":     {Name: "exp-*", MaxDelta: 1000, Increments: true, Anonymous: true, History: "none", HotThreshold: -1},
		"exp-":      {Name: "exp-*", MaxDelta: 1000, Increments: true, Anonymous: true, History: "none", HotThreshold: -1},
		"exp-a":     {Name: "exp-a*", MaxDelta: 1000, Likes: true, Anonymous: true, Guard: true, Caller: shared, HotThreshold: -1},
		"exp-all-x": {Name: "exp-a*", MaxDelta: 1000, Likes: true, Anonymous: true, Guard: true, Caller: shared, HotThreshold: -1},
		"exp-all":   {Name: "exp-all", MaxDelta: 1000, Increments: true, Likes: true, Anonymous: true, Caller: shared, HotThreshold: -1},
		"exp":       {Name: "*", MaxDelta: 1000, Increments: true, Likes: true, Anonymous: true, Caller: shared, HotThreshold: -1},
		"":          {Name: "", MaxDelta: 7, Increments: true, Likes: true, Anonymous: true, Caller: shared, HotThreshold: -1},
	}
	for namespace, policy := range want {
		got := set.Of(namespace)
		if fmt.Sprintf("%+v", dereferenced(*got)) != fmt.Sprintf("%+v", dereferenced(policy)) {
			t.Errorf("%q:\n got %+v\nwant %+v", namespace, dereferenced(*got), dereferenced(policy))
		}
	}
	var names []string
	for _, p := range set.All() {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"*", "views", "exp-*", "exp-a*", "exp-all", ""}) {
		t.Errorf("policies %q", names)
	}
	const views = `namespaces.views: max_delta=1000 anonymous=false once_per=1h0m0s dedupe_window=1m0s history=minute hot_threshold=0 shards=8 ` +
		`limits.actor_key="1/10s" limits.actor="100/1m0s" limits.caller="5000/1s burst 10000" (shared with default)`
	if got := set.Of("views").String(); got != views {
		t.Errorf("shown as\n%s, want\n%s", got, views)
	}
	if p := set.Of("exp-a"); !p.NamesActor() || set.Of("other").NamesActor() || !set.Of("views").NamesActor() {
		t.Error("who must name the actor is wrong")
	}
}

// dereferenced is a policy whose limits can be printed.
func dereferenced(p Policy) any {
	limits := []any{nil, nil, nil}
	for i, l := range []*Limit{p.ActorKey, p.Actor, p.Caller} {
		if l != nil {
			limits[i] = *l
		}
	}
	p.ActorKey, p.Actor, p.Caller = nil, nil, nil
	return []any{p, limits}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, want string }{
		{"", "the file is empty"},
		{"# nothing\n", "the file is empty"},
		{"{}", "line 1: the file states no policy"},
		{"null", "line 1: the file states no policy"},
		{"- a", "line 1: the file must be a mapping, not a list"},
		{"default: [", "line 1: it is not YAML: "},
		{"default:\n\tmax_delta: 1", "line 2: it is not YAML: "},
		{"default: {max_delta: 1}\n---\ndefault: {}", "a second document begins"},
		{"defaults: {}", `line 1: unknown key "defaults": the file may have default, namespaces`},
		{"default: {}\nnamespaces: {}\ndefault: {}", `line 3: "default" is there twice, first in line 1`},
		{"default:\n  max_delta: 1\n  max_delta: 2", `line 3: "max_delta" is there twice, first in line 2`},
		{"default: {max_detla: 1}", `line 1: unknown key "max_detla": a policy may have anonymous, dedupe_window, guard, `},
		{"default: 7", `line 1: a policy must be a mapping, not "7"`},
		{"default: {[a]: 1}", "line 1: a key must be a word, not a list"},
		{"default: &a {likes: false}\nnamespaces: {views: *a}", `line 2: "views" is an alias: state its value`},
		{"default: {limits: {caller: 5/1m, actor: &none 5/1m, actor_key: *none}}", `line 1: "actor_key" is an alias`},
		{"default: {dedupe_window: &none 1m, once_per: *none}", `line 1: "once_per" is an alias`},
		{"default: {dedupe_window: &hour 1m, history: *hour}", `line 1: "history" is an alias`},
		{"default: &5 {max_delta: 5}\nnamespaces: *5", `line 2: "namespaces" is an alias`},
		{"default: {max_delta: 0}", `line 1: max_delta must be a whole number from 1 to 1000000, not "0"`},
		{"default: {max_delta: 1000001}", `max_delta must be a whole number`},
		{"default: {max_delta: 1e3}", `not "1e3"`},
		{"default: {max_delta: [1]}", `not a list`},
		{"default: {likes: yes}", `line 1: likes must be true or false, not "yes"`},
		{"default: {likes: }", `likes must be true or false, not ""`},
		{"default: {once_per: 0s}", "once_per must be from 1ms to 168h0m0s, not 0s"},
		{"default: {once_per: 1500us}", "once_per must be in whole milliseconds"},
		{"default: {once_per: 200h}", "once_per must be from 1ms"},
		{"default: {once_per: 5}", `once_per must be a time such as 90s, 5m or 24h, not "5"`},
		{"default: {dedupe_window: 6m}", "dedupe_window must be from 1s to 5m0s, not 6m0s"},
		{"default: {dedupe_window: none}", "dedupe_window must be a time"},
		{"default: {history: day}", `history must be hour, minute or none, not "day"`},
		{"default: {hot_threshold: -1}", "hot_threshold must be a whole number from 0"},
		{"default: {shards: 0}", `shards must be a whole number from 1 to 8, not "0"`},
		{"default: {shards: 9}", `shards must be a whole number from 1 to 8, not "9"`},
		{"default: {limits: {actors: 1/1s}}", `unknown key "actors": limits may have actor, actor_key, caller`},
		{"default: {limits: {actor: 100}}", `limits.actor: "100" is not a rate`},
		{"default: {limits: {actor: }}", "limits.actor lacks a value"},
		{"default: {limits: {actor: {rate: 1}}}", "limits.actor lacks a value"},
		{"default: {guard: true, anonymous: true}", "anonymous must not be true with a guard"},
		{"default: {guard: true}\nnamespaces:\n  views: {anonymous: true}", "line 3: anonymous must not be true with a guard"},
		{"namespaces: [views]", "namespaces must be a mapping, not a list"},
		{"namespaces: {\"*\": {}}", "belongs in default"},
		{"namespaces: {a/b: {}}", "a namespace ends before the first slash"},
		{"namespaces: {a*b: {}}", "a * stands only at the end"},
		{"namespaces: {a b: {}}", "must be printable, without spaces"},
		{"namespaces: {" + strings.Repeat("a", 256) + ": {}}", "must be at most 255 bytes"},
		{"namespaces: {? [a] : {}}", "must be a name"},
		{"namespaces:\n  views: {}\n  views: {}", `line 3: "views" is there twice, first in line 2`},
	} {
		_, err := Parse([]byte(test.text), bounds)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\n got %v\nwant %s", test.text, err, test.want)
		}
	}
	if _, err := Parse([]byte("default: {guard: true}"), Bounds{MaxDelta: 1, DedupeWindow: time.Minute}); err == nil {
		t.Error("a guard that is not there is taken")
	}
	if _, err := Parse([]byte("default: {guard: true}\nnamespaces: {views: {guard: false, anonymous: true}}"), bounds); err != nil {
		t.Error(err)
	}
}

// All that is wrong is told, from top to bottom.
func TestAllProblems(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte("namespaces:\n  a: {likes: 1}\n  b: {max_delta: -1}\ndefault: {x: 1, limits: {actor: x, caller: y}}"), bounds)
	var problems FileErrors
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var lines []int
	for _, p := range problems {
		lines = append(lines, p.Line)
	}
	if !slices.Equal(lines, []int{2, 3, 4, 4, 4}) {
		t.Errorf("lines %v: %v", lines, err)
	}
}

func TestManyNamespaces(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("namespaces:\n")
	for i := range maxNamespaces {
		fmt.Fprintf(&text, "  n%d: {}\n", i)
	}
	parse(t, text.String())
	text.WriteString("  one-more: {}\n")
	if _, err := Parse([]byte(text.String()), bounds); err == nil || !strings.Contains(err.Error(), "there are 1001 namespaces") {
		t.Error(err)
	}
}

// Whatever a file holds, it is taken or refused with reasons, and what is taken stays within the bounds.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("default: {a: &x [*x]}"))
	f.Add([]byte("? {a: b}\n: c\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := Parse(data, bounds)
		if err != nil {
			if err.Error() == "" {
				t.Error("a reason is lacking")
			}
			return
		}
		for _, p := range set.All() {
			if p.MaxDelta < 0 || p.MaxDelta > bounds.MaxDelta || p.DedupeWindow > bounds.DedupeWindow || p.OncePer < 0 || p.Shards < 0 || p.Shards > bounds.Shards || p.String() == "" {
				t.Errorf("%+v", *p)
			}
			for _, l := range []*Limit{p.ActorKey, p.Actor, p.Caller} {
				if l != nil && (l.Rate.Burst < 1 || set.Of(strings.TrimSuffix(l.Scope, "*")) == nil) {
					t.Errorf("%+v", *l)
				}
			}
		}
	})
}

func BenchmarkOf(b *testing.B) {
	set := parse(b, example)
	for b.Loop() {
		set.Of("views")
		set.Of("exp-all-x")
		set.Of("something")
	}
}
