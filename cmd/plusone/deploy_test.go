package main_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const deployDir = "../../deploy"

// documents decodes a file of YAML strictly: a key that stands twice is an error.
func documents[T any](t *testing.T, file string) []T {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deployDir, file))
	must(t, err)
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var all []T
	for {
		var document T
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, document)
	}
}

// duration is the value of a setting in the settings that a deployment gives, or else its default.
func duration(t *testing.T, flag string, env map[string]string) time.Duration {
	t.Helper()
	text, ok := env[envOf(flag)]
	if !ok {
		text = regexp.MustCompile(regexp.QuoteMeta(flag) + `="?([0-9a-z]+)`).FindStringSubmatch(helpOf(t, "serve"))[1]
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// checkMemory checks that the collector's limit leaves something for what it does not know of, and no more than that.
func checkMemory(t *testing.T, goLimit, limit string) {
	t.Helper()
	units := map[string]float64{"MiB": 1 << 20, "Gi": 1 << 30, "g": 1 << 30, "G": 1 << 30} // of Go, Kubernetes, compose, systemd
	parse := func(text string) float64 {
		unit := strings.TrimLeft(text, "0123456789")
		number, err := strconv.Atoi(strings.TrimSuffix(text, unit))
		if err != nil || units[unit] == 0 {
			t.Errorf("%q is no amount of memory: %v", text, err)
		}
		return float64(number) * units[unit]
	}
	if part := parse(goLimit) / parse(limit); part < 0.8 || part > 0.95 {
		t.Errorf("GOMEMLIMIT=%s is %.2f of the limit %s, and should be nine tenths", goLimit, part, limit)
	}
}

// Whatever deployments set can be set, all YAML can be read, and commands exist.
func TestDeployedSettings(t *testing.T) {
	t.Parallel()
	help := helpOf(t, "serve")
	files := 0
	must(t, filepath.WalkDir(deployDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		name, err := filepath.Rel(deployDir, path)
		must(t, err)
		if slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name)) && len(documents[map[string]any](t, name)) == 0 {
			t.Errorf("%s is empty", name)
		}
		text, err := os.ReadFile(path)
		must(t, err)
		for _, env := range docEnv.FindAllString(string(text), -1) {
			if !regexp.MustCompile(`\$` + env + `\b`).MatchString(help) {
				t.Errorf("%s sets %s, which does not exist", name, env)
			}
		}
		for _, match := range regexp.MustCompile(`(?m)"plusone ([a-z]+)"|/plusone"?,? "?([a-z]+)"?\]?$`).FindAllStringSubmatch(string(text), -1) {
			helpOf(t, match[1]+match[2])
		}
		return nil
	}))
	if files < 10 {
		t.Errorf("found %d files", files)
	}
}

// The image is built by a Go that go.mod accepts, and the build sees each folder that the program is made of.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	dockerfile := readDoc(t, "deploy/Dockerfile")
	image := regexp.MustCompile(`(?m)^FROM golang:1\.(\d+)\.(\d+) `).FindStringSubmatch(dockerfile)
	module := regexp.MustCompile(`(?m)^go 1\.(\d+)\.(\d+)$`).FindStringSubmatch(readDoc(t, "go.mod"))
	if image == nil || module == nil || image[1] != module[1] || len(image[2]) < len(module[2]) ||
		len(image[2]) == len(module[2]) && image[2] < module[2] {
		t.Errorf("deploy/Dockerfile builds with %q, go.mod asks for %q", image, module)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(readDoc(t, "deploy/Dockerfile.dockerignore")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "!"); ok {
			seen[name] = true
		}
	}
	list := exec.CommandContext(within(t, patience), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", ".")
	out, err := list.Output()
	must(t, err)
	packages := strings.Fields(string(out))
	if len(packages) < 5 {
		t.Fatalf("the program is made of %q", packages)
	}
	for _, path := range packages {
		folder, _, _ := strings.Cut(strings.TrimPrefix(path, "github.com/plusone-dev/plusone/"), "/")
		if !seen[folder] {
			t.Errorf("deploy/Dockerfile.dockerignore keeps %s from the build", folder)
		}
	}
}

// unit is a file of systemd, by key; later values of a key replace earlier ones.
func unit(t *testing.T, file string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for line := range strings.Lines(readDoc(t, file)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && line[0] != '#' {
			values[key] = value
		}
	}
	return values
}

func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	service, env := unit(t, "deploy/systemd/plusone.service"), unit(t, "deploy/systemd/plusone.env")
	stop, err := strconv.Atoi(service["TimeoutStopSec"])
	must(t, err)
	if limit := duration(t, "--shutdown-timeout", env); time.Duration(stop)*time.Second <= limit {
		t.Errorf("systemd kills after %d s, and a stop may take %v", stop, limit)
	}
	checkMemory(t, env["GOMEMLIMIT"], service["MemoryMax"])
	if got := service["RestartPreventExitStatus"]; got != strconv.Itoa(misuse) {
		t.Errorf("no restart after exit code %s, want %d", got, misuse)
	}
	if got := filepath.Base(service["EnvironmentFile"]); got != "plusone.env" {
		t.Errorf("the settings are read from %s", got)
	}
}

// Each alert says where in the runbook it stands, and the runbook has nothing about alerts that do not exist.
func TestRunbookHasAlerts(t *testing.T) {
	t.Parallel()
	type rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	var headings, alerts []string
	for _, match := range regexp.MustCompile(`(?m)^### Alert: (\w+)$`).FindAllStringSubmatch(readDoc(t, "docs/runbook.md"), -1) {
		headings = append(headings, match[1])
	}
	for _, group := range documents[rules](t, "prometheus/alerts.yaml")[0].Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" {
				continue
			}
			alerts = append(alerts, rule.Alert)
			want := "/docs/runbook.md#alert-" + strings.ToLower(rule.Alert)
			if got := rule.Annotations["runbook_url"]; !strings.HasSuffix(got, want) {
				t.Errorf("%s has runbook_url %q, which should end in %s", rule.Alert, got, want)
			}
		}
	}
	if len(alerts) == 0 || !slices.Equal(headings, alerts) {
		t.Errorf("the alerts are\n%q,\nand the runbook has\n%q", alerts, headings)
	}
}

// The SQL of the runbook runs.
func TestRunbookSQL(t *testing.T) {
	t.Parallel()
	statements := regexp.MustCompile("`(SELECT [^`]+)`|'(SELECT [^']+)'").FindAllStringSubmatch(readDoc(t, "docs/runbook.md"), -1)
	if len(statements) < 5 {
		t.Fatalf("found %q", statements)
	}
	url := migratedDatabase(t)
	for _, match := range statements {
		runSQL(t, url, match[1]+match[2])
	}
}

// The runbook names metrics, flags and headings that exist.
func TestRunbookNames(t *testing.T) {
	t.Parallel()
	runbook, operating := readDoc(t, "docs/runbook.md"), readDoc(t, "docs/operating.md")
	for _, metric := range regexp.MustCompile(`plusone_[a-z_]+`).FindAllString(runbook, -1) {
		if name := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(metric, ""); !strings.Contains(operating, name) {
			t.Errorf("docs/runbook.md names %s, which docs/operating.md does not have", metric)
		}
	}
	help := helpOf(t, "serve") + helpOf(t, "audit")
	for _, match := range docFlag.FindAllStringSubmatch(runbook, -1) {
		if !strings.Contains(help, match[1]) {
			t.Errorf("docs/runbook.md mentions %s, which does not exist", match[1])
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([a-z.]*)#([a-z-]+)\)`).FindAllStringSubmatch(runbook, -1) {
		text := runbook
		if link[1] != "" {
			text = readDoc(t, "docs/"+link[1])
		}
		anchors := map[string]bool{}
		for _, heading := range regexp.MustCompile(`(?m)^##+ (.+)$`).FindAllStringSubmatch(text, -1) {
			anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
			anchors[strings.ReplaceAll(anchor, " ", "-")] = true
		}
		if !anchors[link[2]] {
			t.Errorf("docs/runbook.md links to %s#%s, which does not exist", link[1], link[2])
		}
	}
}
