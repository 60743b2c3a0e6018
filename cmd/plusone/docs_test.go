package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/policy"
	"github.com/plusone-dev/plusone/internal/testproc"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	must(t, err)
	return string(text)
}

// A table ends with a blank line, or what follows is a row of it; no metric has two rows.
func TestTables(t *testing.T) {
	t.Parallel()
	docs, err := filepath.Glob("../../docs/*.md")
	must(t, err)
	for _, path := range append(docs, "../../README.md") {
		text, err := os.ReadFile(path)
		must(t, err)
		within, rows := false, map[string]bool{}
		for i, line := range strings.Split(string(text), "\n") {
			line = strings.TrimSpace(line)
			row := strings.HasPrefix(line, "|")
			if within && !row && line != "" {
				t.Errorf("%s:%d: a table has no blank line after it", path, i+1)
			}
			within = row
			if !strings.HasPrefix(line, "| `plusone_") {
				continue
			}
			cell, _, _ := strings.Cut(line[2:], " | ")
			for _, name := range metricName.FindAllString(cell, -1) {
				if rows[name] {
					t.Errorf("%s:%d: %s is in a row before", path, i+1, name)
				}
				rows[name] = true
			}
		}
	}
}

// helpOf is the help of a command, each flag on a line of its own.
func helpOf(t *testing.T, command string) string {
	t.Helper()
	output, code := execute(t, nil, command, "--help")
	if code != 0 {
		t.Fatalf("%s --help: exit code %d", command, code)
	}
	return output
}

var (
	helpFlag = regexp.MustCompile(`(?m)^  (?:-h, )?(--[a-z0-9-]+(?:=\S+)?)`)
	docFlag  = regexp.MustCompile("`(--[a-z][a-z0-9-]*)(=[^`]*)?`")
	docEnv   = regexp.MustCompile(`PLUSONE_[A-Z0-9_]+`)
	// placeholder stands in the help for the value of a flag that has no default.
	placeholder = regexp.MustCompile(`=[A-Z-]+$`)
	docRow      = regexp.MustCompile("(?m)^\\| `(--[a-z0-9-]+(?:=[^`]*)?)` \\| *([fma ]*?) *\\|")
)

// Every flag is in the table of settings, with its default and its commands, and no other one is anywhere.
func TestDocumentedFlags(t *testing.T) {
	t.Parallel()
	commands := map[string]string{"": "serve", "f": "flush", "m": "migrate", "a": "audit"}
	want, names := map[string]string{}, map[string]bool{}
	help := map[string]string{}
	for _, mark := range []string{"", "f", "m", "a"} {
		help[mark] = helpOf(t, commands[mark])
		for _, match := range helpFlag.FindAllStringSubmatch(help[mark], -1) {
			flag := placeholder.ReplaceAllString(match[1], "")
			if flag != "--help" {
				want[flag] = strings.TrimSpace(want[flag] + " " + mark)
				name, _, _ := strings.Cut(flag, "=")
				names[name] = true
				if env := envOf(name); !strings.Contains(help[mark], "$"+env) {
					t.Errorf("the help of %s does not name %s", commands[mark], env)
				}
			}
		}
	}
	operating := readDoc(t, "docs/operating.md")
	got := map[string]string{}
	for _, row := range docRow.FindAllStringSubmatch(operating, -1) {
		got[row[1]] = row[2]
	}
	for flag, marks := range want {
		if documented, ok := got[flag]; !ok || documented != marks {
			t.Errorf("docs/operating.md has %q for commands %q, want %q (%t)", flag, documented, marks, ok)
		}
	}
	if len(got) != len(want) {
		t.Errorf("docs/operating.md documents %d flags, there are %d", len(got), len(want))
	}
	for name, text := range map[string]string{"docs/operating.md": operating, "README.md": readDoc(t, "README.md")} {
		for _, match := range docFlag.FindAllStringSubmatch(text, -1) {
			if !names[match[1]] {
				t.Errorf("%s mentions %s, which does not exist", name, match[1])
			}
		}
		for _, env := range docEnv.FindAllString(text, -1) {
			if !strings.Contains(help[""], "$"+env) {
				t.Errorf("%s mentions %s, which does not exist", name, env)
			}
		}
	}
}

func envOf(flag string) string {
	return "PLUSONE_" + strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(flag, "--"), "-", "_"))
}

// What the documentation shows of policies is one, and tells of every setting.
func TestDocumentedPolicies(t *testing.T) {
	t.Parallel()
	doc := readDoc(t, "docs/policy.md")
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(doc, -1)
	if len(blocks) == 0 {
		t.Fatal("there is no policy file")
	}
	for _, block := range blocks {
		if _, err := policy.Parse([]byte(block[1]), policy.Bounds{
			MaxDelta: 1e12, DedupeWindow: 5 * time.Minute, Shards: 8, Guard: true,
		}); err != nil {
			t.Error(err)
		}
	}
	_, err := policy.Parse([]byte("default: {x: 1, limits: {x: 1}}"), policy.Bounds{})
	for _, list := range regexp.MustCompile(`may have ([a-z_, ]+)`).FindAllStringSubmatch(err.Error(), -1) {
		for name := range strings.SplitSeq(list[1], ", ") {
			if !strings.Contains(doc, "| `"+name+"` |") {
				t.Errorf("docs/policy.md has no row for %s", name)
			}
		}
	}
}

// What the documentation shows of SQL runs.
func TestDocumentedSQL(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(readDoc(t, "docs/operating.md"), -1)
	if len(blocks) < 2 {
		t.Fatalf("found %d blocks", len(blocks))
	}
	url := migratedDatabase(t)
	for _, block := range blocks {
		for statement := range strings.SplitSeq(block[1], ";") {
			if strings.TrimSpace(statement) != "" {
				runSQL(t, url, statement)
			}
		}
	}
}

// The Go of the README compiles, and counts.
func TestReadmeGo(t *testing.T) {
	t.Parallel()
	var code strings.Builder // the blocks follow each other
	for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(readDoc(t, "README.md"), -1) {
		code.WriteString(block[1])
	}
	if code.Len() == 0 {
		t.Fatal("README.md has no Go")
	}
	s := start(t, "--data="+testproc.TempDir(t)+"/plusone.db")
	program := `package main

import (
	"context"
	"log"

	"github.com/plusone-dev/plusone/client"
)

func main() {
	if err := readme(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func readme(ctx context.Context) error {
` + strings.ReplaceAll(code.String(), "127.0.0.1:50051", s.GRPCAddr) + `
	if err != nil {
		return err
	}
	log.Print("count is ", count.Count, ", likes are ", liked.Count, ", liked are ", states[0].Liked, states[1].Liked)
	return nil
}
`
	file := filepath.Join(t.TempDir(), "main.go")
	must(t, os.WriteFile(file, []byte(program), 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// From here, the import is that of this module.
	output, err := exec.CommandContext(ctx, "go", "run", file).CombinedOutput()
	if err != nil || !strings.Contains(string(output), "count is 1, likes are 1, liked are true false") {
		t.Errorf("%v:\n%s", err, output)
	}
}
