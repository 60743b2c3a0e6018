package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/plusone-dev/plusone/internal/counter"
)

// maxNamespaces bounds the policies of a file.
const maxNamespaces = 1_000

// Problem is something wrong with a policy file.
type Problem struct {
	// Line is where, from 1; 0 if that cannot be told.
	Line int
	Text string
}

// FileErrors are all that is wrong with a policy file, from top to bottom.
type FileErrors []Problem

// Error lists the first problems.
func (p FileErrors) Error() string {
	const listed = 5
	var texts []string
	for _, problem := range p[:min(len(p), listed)] {
		texts = append(texts, problem.String())
	}
	if len(p) > listed {
		texts = append(texts, fmt.Sprintf("and %d more", len(p)-listed))
	}
	return strings.Join(texts, "; ")
}

// String is the line and what is wrong.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// Parse reads a policy file. An error is FileErrors.
func Parse(data []byte, bounds Bounds) (*Set, error) {
	p := &parser{bounds: bounds}
	set := p.file(data)
	if len(p.problems) > 0 {
		slices.SortStableFunc(p.problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, p.problems
	}
	return set, nil
}

type parser struct {
	bounds   Bounds
	problems FileErrors
}

func (p *parser) problem(at *yaml.Node, format string, args ...any) {
	p.problems = append(p.problems, Problem{Line: at.Line, Text: fmt.Sprintf(format, args...)})
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

// file reads the file. What it returns is of use only if there were no problems.
func (p *parser) file(data []byte) *Set {
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			p.problem(&yaml.Node{}, "the file is empty")
			return nil
		}
		p.syntaxError(err)
		return nil
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		p.problem(&second, "a second document begins: a policy file is one document")
	case !errors.Is(err, io.EOF):
		p.syntaxError(err)
	}
	if len(document.Content) == 0 {
		p.problem(&document, "the file is empty")
		return nil
	}
	root := document.Content[0]
	set := &Set{names: map[string]*Policy{}, starts: map[string]*Policy{}, fallback: newDefault()}
	set.all = []*Policy{set.fallback}
	var namespaces *yaml.Node
	stated := p.mapping(root, "the file", map[string]func(*yaml.Node){
		"default":    func(n *yaml.Node) { p.policy(n, set.fallback) },
		"namespaces": func(n *yaml.Node) { namespaces = n },
	})
	if stated == 0 && len(p.problems) == 0 {
		p.problem(root, "the file states no policy")
	}
	if namespaces != nil { // last, for what they take over
		p.namespaces(namespaces, set)
	}
	return set
}

// syntaxError takes the line out of an error of the YAML package.
func (p *parser) syntaxError(err error) {
	text, line := err.Error(), 0
	if found := yamlLine.FindStringSubmatch(text); found != nil {
		line, _ = strconv.Atoi(found[1]) // which has digits only
		text = text[len(found[0]):]
	}
	p.problem(&yaml.Node{Line: line}, "it is not YAML: %s", strings.TrimPrefix(text, "yaml: "))
}

// mapping hands the values of a mapping to the readers of their keys, and returns how many there are.
func (p *parser) mapping(n *yaml.Node, what string, read map[string]func(*yaml.Node)) int {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return 0
	}
	if n.Kind != yaml.MappingNode {
		p.problem(n, "%s must be a mapping, not %s", what, kindOf(n))
		return 0
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			p.problem(key, "a key must be a word, not %s", kindOf(key))
			continue
		}
		if first, twice := lines[key.Value]; twice {
			p.problem(key, "%s is there twice, first in line %d", quoted(key.Value), first)
			continue
		}
		lines[key.Value] = key.Line
		if value.Kind == yaml.AliasNode { // readers would take its name for a value
			p.problem(value, "%s is an alias: state its value", quoted(key.Value))
			continue
		}
		if reader, known := read[key.Value]; known {
			reader(value)
		} else {
			names := slices.Sorted(maps.Keys(read))
			p.problem(key, "unknown key %s: %s may have %s", quoted(key.Value), what, strings.Join(names, ", "))
		}
	}
	return len(lines)
}

func (p *parser) namespaces(n *yaml.Node, set *Set) {
	readers := map[string]func(*yaml.Node){}
	if n.Kind == yaml.MappingNode {
		if len(n.Content) > 2*maxNamespaces {
			p.problem(n, "there are %d namespaces, and may be %d", len(n.Content)/2, maxNamespaces)
			return
		}
		for i := 0; i < len(n.Content); i += 2 {
			name := n.Content[i]
			if problem := patternProblem(name); problem != "" {
				p.problem(name, "namespace %s: %s", quoted(name.Value), problem)
			}
			readers[name.Value] = func(value *yaml.Node) { p.namespace(name.Value, value, set) }
		}
	}
	p.mapping(n, "namespaces", readers)
	for start := range set.starts {
		set.lengths = append(set.lengths, len(start))
	}
	slices.Sort(set.lengths)
	set.lengths = slices.Compact(set.lengths)
	slices.Reverse(set.lengths)
}

func (p *parser) namespace(name string, n *yaml.Node, set *Set) {
	policy := *set.fallback
	policy.Name = name
	p.policy(n, &policy)
	set.all = append(set.all, &policy)
	if start, open := strings.CutSuffix(name, "*"); open {
		set.starts[start] = &policy
	} else {
		set.names[name] = &policy
	}
}

// patternProblem says what is wrong with the name of a namespace, which is part of a key.
func patternProblem(n *yaml.Node) string {
	name := strings.TrimSuffix(n.Value, "*")
	switch {
	case n.Kind != yaml.ScalarNode:
		return "must be a name"
	case n.Value == Default:
		return "what holds for all namespaces belongs in default"
	case len(name) >= counter.MaxKeyBytes:
		return fmt.Sprintf("must be at most %d bytes", counter.MaxKeyBytes-1)
	case strings.Contains(name, "/"):
		return "a namespace ends before the first slash of a key"
	case strings.Contains(name, "*"):
		return "a * stands only at the end"
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }):
		return "must be printable, without spaces"
	}
	return ""
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	default:
		return quoted(n.Value)
	}
}

// quoted is a text of the file, in a length that fits a message.
func quoted(text string) string {
	const most = 60
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strconv.Quote(text)
}
