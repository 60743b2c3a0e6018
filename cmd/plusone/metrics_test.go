package main_test

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/plusone-dev/plusone/internal/certtest"
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

// scrape adds what a process shows.
func (s scraped) scrape(t *testing.T, instance *plusonetest.Instance) {
	t.Helper()
	code, body := instance.Page("/metrics")
	if code != 200 {
		t.Fatalf("/metrics answers %d", code)
	}
	s.add(body)
}

// add adds what a page of metrics shows. A histogram is there under its own name, and under those of its parts.
func (s scraped) add(body string) {
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
	policies := testproc.TempDir(t) + "/policy.yaml"
	must(t, os.WriteFile(policies, []byte("default: {guard: true, limits: {actor: 10/1s}}\n"), 0o600))
	all.scrape(t, start(t, "--data="+testproc.TempDir(t)+"/plusone.db", "--trace-endpoint=http://127.0.0.1:1",
		"--policy-file="+policies, "--guard-url=http://127.0.0.1:1/"))
	all.scrape(t, start(t, "--postgres-url="+pgtest.NewDatabase(t), "--postgres-max-conns=6"))
	sharded := shardedArgs(redistest.Start(t, redistest.AppendFsyncAlways()).URL(), pgtest.NewDatabase(t))
	all.scrape(t, start(t, append(sharded, "--flush=false", "--policy-file="+policies, "--guard-url=http://127.0.0.1:1/",
		"--deny-redis-key=plusone:denied")...))
	authority := certtest.NewAuthority(t)
	files := authority.Issue(t, certtest.Leaf{Name: "127.0.0.1"}).Write(t, testproc.TempDir(t), "server")
	worker := launch(t, append([]string{"flush", "--tls-cert=" + files.Certificate, "--tls-key=" + files.Key}, sharded...)...)
	worker.WaitReady()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + worker.HTTPAddr + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	must(t, err)
	all.add(string(page))
	return all
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
	t.Run("alerts", func(t *testing.T) {
		rules := readRules(t)
		for _, r := range rules {
			checkQuery(t, all, rules, r.Alert+r.Record, r.Expr)
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

// rule is a rule of deploy/prometheus/alerts.yaml.
type rule struct {
	Alert, Record, Expr string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var file struct{ Groups []struct{ Rules []rule } }
	must(t, yaml.Unmarshal([]byte(readDoc(t, "deploy/prometheus/alerts.yaml")), &file))
	var rules []rule
	for _, group := range file.Groups {
		rules = append(rules, group.Rules...)
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
			i := slices.IndexFunc(rules, func(r rule) bool { return r.Record == name })
			if i < 0 {
				t.Errorf("%s: no rule records %s", where, name)
				continue
			}
			// It has the labels of the metrics that it is made of.
			for _, source := range querySelector.FindAllStringSubmatch(rules[i].Expr, -1) {
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

// Each alert says how bad it is, what it means and where to read on.
func TestAlertsAreComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if seen[r.Alert] {
			t.Errorf("%s is there twice", r.Alert)
		}
		seen[r.Alert] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) ||
			r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks a severity, a summary or a description", r.Alert)
		}
		if anchor := "#alert-" + strings.ToLower(r.Alert); !strings.HasSuffix(r.Annotations["runbook_url"], anchor) {
			t.Errorf("%s links to %s, not to %s", r.Alert, r.Annotations["runbook_url"], anchor)
		}
	}
	if len(seen) == 0 {
		t.Error("there are no alerts")
	}
}
