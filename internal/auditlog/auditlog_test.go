package auditlog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/auditlog"
)

var action = auditlog.Action{
	Caller: "support", Peer: "10.1.2.3:4567", Method: "/plusone.v1.AdminService/Delete", RequestID: "id-1", Key: "views/post:42", Actor: "user-7",
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func toFile(t *testing.T, path string) (*auditlog.Log, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	l, err := auditlog.ToFile(path, slog.New(slog.DiscardHandler), registry)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l, registry
}

// do does an action.
func do(t *testing.T, l *auditlog.Log, a auditlog.Action, outcome string) {
	t.Helper()
	end, err := l.Begin(t.Context(), a)
	must(t, err)
	end(outcome)
}

// lines are those of a file.
func lines(t *testing.T, path string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var parsed []map[string]any
	for line := range bytes.Lines(text) {
		var l map[string]any
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		parsed = append(parsed, l)
	}
	return parsed
}

func TestLinesOfAnAction(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, registry := toFile(t, path)
	end, err := l.Begin(t.Context(), action)
	must(t, err)
	if n := len(lines(t, path)); n != 1 {
		t.Fatalf("%d lines when an action begins", n)
	}
	end("NotFound")
	got := lines(t, path)
	if len(got) != 2 {
		t.Fatalf("%d lines", len(got))
	}
	for i, event := range []string{"begin", "end"} {
		for name, want := range map[string]any{
			"event": event, "caller": "support", "peer": "10.1.2.3:4567", "method": "/plusone.v1.AdminService/Delete",
			"request_id": "id-1", "key": "views/post:42", "actor": "user-7", "id": got[0]["id"],
		} {
			if got[i][name] != want {
				t.Errorf("line %d has %s=%v, want %v", i, name, got[i][name], want)
			}
		}
	}
	if got[0]["outcome"] != nil || got[1]["outcome"] != "NotFound" || got[0]["time"] == nil || got[1]["seconds"] == nil {
		t.Errorf("%v", got)
	}
	do(t, l, action, auditlog.OutcomeOK)
	if again := lines(t, path); again[2]["id"] == got[0]["id"] {
		t.Error("two actions have one id")
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v", info.Mode())
	}
	for outcome, want := range map[string]float64{"ok": 1, "failed": 1, "not_begun": 0} {
		if got := counted(t, registry, "plusone_auditlog_actions_total", outcome); got != want {
			t.Errorf("%v actions %s, want %v", got, outcome, want)
		}
	}
}

// A file that is renamed keeps what it has, and the next line goes to a new one.
func TestRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := toFile(t, path)
	end, err := l.Begin(t.Context(), action)
	must(t, err)
	must(t, os.Rename(path, path+".1"))
	end(auditlog.OutcomeOK)
	if before, after := lines(t, path+".1"), lines(t, path); len(before) != 1 || len(after) != 1 || after[0]["event"] != "end" {
		t.Errorf("before %v, after %v", before, after)
	}
	must(t, os.Remove(path))
	do(t, l, action, auditlog.OutcomeOK)
	if n := len(lines(t, path)); n != 2 {
		t.Errorf("%d lines in the file that took the place of one that was removed", n)
	}
	must(t, os.Truncate(path, 0)) // as logrotate's copytruncate does
	do(t, l, action, auditlog.OutcomeOK)
	if n := len(lines(t, path)); n != 2 {
		t.Errorf("%d lines in a file that was cut", n)
	}
}

// What a crash left of a line stays apart from the lines that follow.
func TestTornLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	must(t, os.WriteFile(path, []byte(`{"time":"2026-`), 0o600))
	l, _ := toFile(t, path)
	do(t, l, action, auditlog.OutcomeOK)
	text, err := os.ReadFile(path)
	must(t, err)
	torn, rest, _ := strings.Cut(string(text), "\n")
	if torn != `{"time":"2026-` || strings.Count(rest, "\n") != 2 || strings.HasPrefix(rest, "\n") {
		t.Errorf("%s", text)
	}
}

// An action that cannot be written down is not begun, and one that was begun is counted if its end cannot be.
func TestNothingIsDoneUnwritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "audit.log")
	l, registry := toFile(t, path)
	end, err := l.Begin(t.Context(), action)
	must(t, err)
	must(t, os.RemoveAll(dir))
	end(auditlog.OutcomeOK)
	if _, err := l.Begin(t.Context(), action); err == nil {
		t.Error("an action began without a line")
	}
	if n := counted(t, registry, "plusone_auditlog_errors_total", ""); n != 2 {
		t.Errorf("%v errors", n)
	}
	if n := counted(t, registry, "plusone_auditlog_actions_total", "not_begun"); n != 1 {
		t.Errorf("%v actions not begun", n)
	}
	must(t, os.Mkdir(dir, 0o700))
	do(t, l, action, auditlog.OutcomeOK)
	if n := len(lines(t, path)); n != 2 {
		t.Errorf("%d lines when it can be written again", n)
	}
	must(t, l.Close())
	if _, err := l.Begin(t.Context(), action); err == nil {
		t.Error("an action began after the end of the log")
	}
}

// Only a file is a log: a device or a pipe keeps nothing.
func TestOnlyFilesAreLogs(t *testing.T) {
	t.Parallel()
	if _, err := auditlog.ToFile("/dev/full", slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
		t.Error("a device is a log")
	}
	if _, err := auditlog.ToFile(t.TempDir(), slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
		t.Error("a folder is a log")
	}
}

func TestConcurrentActions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := toFile(t, path)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			a := action
			a.RequestID = fmt.Sprint(i)
			do(t, l, a, auditlog.OutcomeOK)
		})
	}
	group.Wait()
	events := map[string]string{}
	for _, line := range lines(t, path) {
		id, _ := line["request_id"].(string)
		events[id] += fmt.Sprint(line["event"], " ")
	}
	for i := range 8 {
		if got := events[fmt.Sprint(i)]; got != "begin end " {
			t.Errorf("action %d: %s", i, got)
		}
	}
}

// Lines are bounded, whatever the fields hold.
func TestFieldsAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := toFile(t, path)
	long := strings.Repeat("ü", 1<<20)
	do(t, l, auditlog.Action{Method: long, Caller: long, Peer: long, RequestID: long, Key: long, Actor: "\xff\n"}, long)
	for _, line := range lines(t, path) {
		for name, value := range line {
			if text, ok := value.(string); ok && (len(text) > 600 || !utf8.ValidString(text)) {
				t.Errorf("%s has %d bytes", name, len(text))
			}
		}
	}
}

func TestToLogger(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&out, nil))
	l, err := auditlog.ToLogger(logger, prometheus.NewRegistry())
	must(t, err)
	do(t, l, action, auditlog.OutcomeOK)
	var last struct {
		Level, Msg string
		Audit      map[string]any
	}
	text := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(text) != 2 {
		t.Fatalf("%s", out.String())
	}
	must(t, json.Unmarshal([]byte(text[1]), &last))
	if last.Level != "INFO" || last.Msg != "audit" || last.Audit["event"] != "end" || last.Audit["key"] != "views/post:42" ||
		last.Audit["outcome"] != "OK" || last.Audit["caller"] != "support" {
		t.Errorf("%+v", last)
	}
	quiet := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if l, err = auditlog.ToLogger(quiet, prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Begin(context.Background(), action); err == nil {
		t.Error("an action began whose line is left out")
	}
}

// counted is a counter, of the outcome if one is given.
func counted(t *testing.T, registry *prometheus.Registry, name, outcome string) float64 {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (outcome == "" || m.GetLabel()[0].GetValue() == outcome) {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no %s of %q", name, outcome)
	return 0
}
