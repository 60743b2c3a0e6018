package plusonetest_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/plusonetest"
)

// Replacements reach Go sources and the files that are embedded, one after the other.
func TestReplacements(t *testing.T) {
	t.Parallel()
	variant := plusonetest.Variant{Replace: []plusonetest.Replacement{
		{File: "cmd/plusone/version.go", Old: `"plusone %s`, New: `"replaced %s`},
		{File: "shard/scripts/move.lua", Old: "-- Rule 4, move: ", New: "-- Replaced: "},
		{File: "shard/scripts/move.lua", Old: "-- Replaced: ", New: "-- Replaced twice: "},
		{File: "flush/migrations/postgres/00001_counters.sql", Old: "-- Everything lives ", New: "-- Replaced lives "},
	}}
	binary, err := plusonetest.Build(variant)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := plusonetest.Build(variant); again != binary || err != nil {
		t.Errorf("built as %s, then as %s: %v", binary, again, err)
	}
	if out, code := plusonetest.Execute(t, binary, nil, "version"); code != 0 || !strings.HasPrefix(out, "replaced ") {
		t.Errorf("exit code %d: %s", code, out)
	}
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-- Replaced twice: ", "-- Replaced lives "} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the program lacks %q", want)
		}
	}
}

// A replacement whose place is not clear is refused.
func TestReplacementsThatDoNotFit(t *testing.T) {
	t.Parallel()
	for _, r := range []plusonetest.Replacement{
		{File: "shard/scripts/move.lua", Old: "no such text"},
		{File: "shard/scripts/move.lua", Old: "redis.call"},
		{File: "shard/scripts/none.lua", Old: "redis.call"},
	} {
		replacements := []plusonetest.Replacement{r}
		if err := plusonetest.Check(replacements); err == nil {
			t.Errorf("%+v is accepted", r)
		}
		if path, err := plusonetest.Build(plusonetest.Variant{Replace: replacements}); err == nil {
			t.Errorf("%+v was built: %s", r, path)
		}
	}
}
