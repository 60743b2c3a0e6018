package main_test

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// scraped are metrics that processes show: by name, the label sets of their series.
type scraped map[string][]map[string]string

var (
	scrapeType   = regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`)
	scrapeSeries = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? \S+$`)
	scrapeLabel  = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
)

// add adds what a page of metrics shows. A histogram is there under its own name, and under those of its parts.
func (s scraped) add(t *testing.T, instance *plusonetest.Instance) {
	t.Helper()
	code, body := instance.Page("/metrics")
	if code != 200 {
		t.Fatalf("/metrics answers %d", code)
	}
	for _, match := range scrapeType.FindAllStringSubmatch(body, -1) {
		s[match[1]] = append(s[match[1]], nil)
	}
	for _, match := range scrapeSeries.FindAllStringSubmatch(body, -1) {
		labels := map[string]string{}
		for _, label := range scrapeLabel.FindAllStringSubmatch(match[2], -1) {
			labels[label[1]] = label[2]
		}
		s[match[1]] = append(s[match[1]], labels)
	}
}

// names are those of plusone's own metrics, without the parts of histograms.
func (s scraped) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s)), func(name string) bool {
		if !strings.HasPrefix(name, "plusone_") {
			return true
		}
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if whole, ok := strings.CutSuffix(name, part); ok && s[whole] != nil {
				return true
			}
		}
		return false
	})
}

// has reports whether there is a series with the value of the label.
func (s scraped) has(name, label, value string) bool {
	return slices.ContainsFunc(s[name], func(labels map[string]string) bool { return labels[label] == value })
}

// scrape starts each kind of process, with all that can be configured to have metrics, and asks it at once: what is not
// there before the first event would be missing when an alert needs it.
func scrape(t *testing.T) scraped {
	t.Helper()
	all := scraped{}
	all.add(t, start(t, observed(t, "--data="+testproc.TempDir(t)+"/plusone.db")...))
	all.add(t, start(t, "--postgres-url="+pgtest.NewDatabase(t), "--postgres-max-conns=6"))
	sharded := shardedArgs(redistest.Start(t, redistest.AppendFsyncAlways()).URL(), pgtest.NewDatabase(t))
	all.add(t, start(t, append(sharded, "--flush=false")...))
	worker := launch(t, append([]string{"flush"}, sharded...)...)
	worker.WaitReady()
	all.add(t, worker)
	return all
}

// observed adds what else has metrics.
func observed(_ *testing.T, args ...string) []string {
	return args
}

// otherParts are metrics of parts that this version of the program does not have.
var otherParts = []string{
	"plusone_reload_failing", "plusone_auth_refused_total", "plusone_tls_certificate_expiry_timestamp_seconds",
	"plusone_gate_refused_total", "plusone_guard_breaker_open", "plusone_guard_decisions_total",
	"plusone_auditlog_errors_total", "plusone_auditlog_actions_total", "plusone_trace_spans_total", "plusone_trace_spans_lost_total",
}

// notMetrics are other names that begin like metrics.
var notMetrics = []string{"plusone_migrations"}

// The metrics of the documentation, of the alerts and of the dashboard are those that exist.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	all := scrape(t)
	operating := readDoc(t, "docs/operating.md")
	_, section, ok := strings.Cut(operating, "\n## Metrics\n")
	if !ok {
		t.Fatal("docs/operating.md has no section of metrics")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[string]bool{}
	for row := range strings.Lines(section) {
		if strings.HasPrefix(row, "| `plusone_") {
			cell, _, _ := strings.Cut(row[2:], " | ")
			for _, name := range metricName.FindAllString(cell, -1) {
				documented[name] = true
			}
		}
	}
	for _, name := range all.names() {
		if !documented[name] {
			t.Errorf("the tables of docs/operating.md lack %s", name)
		}
	}
	for _, name := range metricName.FindAllString(operating, -1) {
		if all[name] == nil && !slices.Contains(notMetrics, name) {
			t.Errorf("docs/operating.md names %s, which does not exist", name)
		}
	}
	for _, name := range otherParts {
		if all[name] != nil {
			t.Errorf("%s exists, and must be checked", name)
		}
		all[name] = []map[string]string{{"file": "", "outcome": "", "reason": ""}}
	}
	t.Run("alerts", func(t *testing.T) {
		rules := readRules(t)
		for _, r := range rules {
			checkQuery(t, all, rules, r.name(), r["expr"])
		}
	})
	t.Run("dashboard", func(t *testing.T) {
		rules := readRules(t)
		for _, expr := range readDashboard(t) {
			checkQuery(t, all, rules, "the dashboard", expr)
		}
	})
}

// metricName finds the names of metrics in a text.
var metricName = regexp.MustCompile(`\bplusone_[a-z][a-z_]*[a-z]\b`)

// rule is a rule of deploy/prometheus/alerts.yaml: its fields, those of labels and annotations with them.
type rule map[string]string

func (r rule) name() string { return r["alert"] + r["record"] }

var ruleField = regexp.MustCompile(`^ {6,10}(- )?([a-z_]+): *(.*)$`)

// readRules reads the file line by line. It knows the forms that the file uses: a text as it is or in double quotes, and
// blocks that begin with |-.
func readRules(t *testing.T) []rule {
	t.Helper()
	var rules []rule
	var block string // the field that goes on
	for line := range strings.Lines(readDoc(t, "deploy/prometheus/alerts.yaml")) {
		line = strings.TrimSuffix(line, "\n")
		if block != "" && strings.HasPrefix(line, strings.Repeat(" ", 10)) {
			rules[len(rules)-1][block] += strings.TrimSpace(line) + "\n"
			continue
		}
		block = ""
		field := ruleField.FindStringSubmatch(line)
		if field == nil {
			continue
		}
		if field[1] != "" {
			rules = append(rules, rule{})
		}
		if len(rules) == 0 {
			t.Fatalf("a field outside a rule: %s", line)
		}
		value := field[3]
		switch {
		case value == "|-":
			block, value = field[2], ""
		case strings.HasPrefix(value, `"`):
			must(t, json.Unmarshal([]byte(value), &value)) // which has the same form
		}
		rules[len(rules)-1][field[2]] = value
	}
	if len(rules) < 30 {
		t.Fatalf("found %d rules", len(rules))
	}
	return rules
}

// readDashboard returns all queries of the dashboard.
func readDashboard(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/grafana/plusone.json")
	must(t, err)
	var document any
	must(t, json.Unmarshal(text, &document))
	var queries []string
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[string]any:
			for name, value := range node {
				if query, ok := value.(string); ok && (name == "expr" || name == "query" && query != "prometheus") {
					queries = append(queries, query)
					continue
				}
				walk(value)
			}
		case []any:
			for _, value := range node {
				walk(value)
			}
		}
	}
	walk(document)
	if len(queries) < 30 {
		t.Fatalf("found %d queries", len(queries))
	}
	return queries
}

var (
	// querySelector finds the metrics of a query, with what is asked of their labels.
	querySelector = regexp.MustCompile(`\b((?:plusone[_:]|process_|go_)[a-z0-9_:]+)(?:\{([^}]*)\})?`)
	queryMatcher  = regexp.MustCompile(`([a-z_]+)(=~|!~|=|!=)"([^"]*)"`)
	queryBy       = regexp.MustCompile(`\b(?:by|on)\s*\(([^)]*)\)`)
)

// targetLabels are those that Prometheus gives to a process that it scrapes.
var targetLabels = []string{"job", "instance"}

// checkQuery checks that metrics of a query exist, that their labels have the values that are asked for, and that what
// they are grouped by are labels of theirs.
func checkQuery(t *testing.T, all scraped, rules []rule, where, query string) {
	t.Helper()
	selectors := querySelector.FindAllStringSubmatch(query, -1)
	if len(selectors) == 0 && !strings.HasPrefix(query, "up{") {
		t.Errorf("%s: found no metric in %s", where, query)
	}
	labels := slices.Clone(targetLabels)
	for _, selector := range selectors {
		name, matchers := selector[1], selector[2]
		if strings.Contains(name, ":") {
			i := slices.IndexFunc(rules, func(r rule) bool { return r["record"] == name })
			if i < 0 {
				t.Errorf("%s: no rule records %s", where, name)
				continue
			}
			// It has the labels of the metrics that it is made of.
			for _, source := range querySelector.FindAllStringSubmatch(rules[i]["expr"], -1) {
				for _, series := range all[source[1]] {
					labels = slices.AppendSeq(labels, maps.Keys(series))
				}
			}
			continue
		}
		if all[name] == nil {
			t.Errorf("%s: %s does not exist", where, name)
			continue
		}
		for _, series := range all[name] {
			labels = slices.AppendSeq(labels, maps.Keys(series))
		}
		for _, m := range queryMatcher.FindAllStringSubmatch(matchers, -1) {
			label, values := m[1], strings.Split(m[3], "|")
			if slices.Contains(targetLabels, label) {
				continue
			}
			for _, value := range values {
				if !strings.ContainsAny(value, "$.*") && !all.has(name, label, value) {
					t.Errorf("%s: no %s has %s=%q", where, name, label, value)
				}
			}
		}
	}
	for _, by := range queryBy.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(by[1], ",") {
			if label = strings.TrimSpace(label); label != "" && !slices.Contains(labels, label) {
				t.Errorf("%s: %s groups by %s, which is no label", where, query, label)
			}
		}
	}
}

// Each alert says how bad it is, what it means and where to read on, and docs/operating.md has that place.
func TestAlertsAreDocumented(t *testing.T) {
	t.Parallel()
	const runbook = "https://github.com/plusone-dev/plusone/blob/main/docs/operating.md#"
	operating := readDoc(t, "docs/operating.md")
	seen := map[string]bool{}
	for _, r := range readRules(t) {
		if r["alert"] == "" {
			continue
		}
		name := r["alert"]
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, r["severity"]) || r["summary"] == "" || r["description"] == "" {
			t.Errorf("%s lacks a severity, a summary or a description: %v", name, r)
		}
		anchor := "alert-" + strings.ToLower(name)
		if r["runbook_url"] != runbook+anchor {
			t.Errorf("%s links to %s", name, r["runbook_url"])
		}
		if !hasAnchor(operating, anchor) {
			t.Errorf("docs/operating.md has no anchor %s", anchor)
		}
	}
}

// hasAnchor reports whether a text has the anchor: that of a heading, or one that is set.
func hasAnchor(text, anchor string) bool {
	if strings.Contains(text, `<a id="`+anchor+`"></a>`) || strings.Contains(text, `<a name="`+anchor+`"></a>`) {
		return true
	}
	for line := range strings.Lines(text) {
		if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			slug := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
			if strings.ReplaceAll(slug, " ", "-") == anchor {
				return true
			}
		}
	}
	return false
}
