package plusonetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/plusone-dev/plusone/internal/testproc"
)

// Variant is a way to build the program. The zero value is the program as it is.
type Variant struct {
	// Tags are build tags.
	Tags []string
	// Race builds with the race detector. An Instance that it finds something in fails its test.
	Race bool
	// Replace changes sources, in order.
	Replace []Replacement
}

// Replacement puts other text into a source of the program, be it Go or an embedded file.
type Replacement struct {
	// File is relative to the root of the module, with slashes.
	File string
	// Old must be in the file exactly once.
	Old, New string
}

var builds = struct {
	sync.Mutex
	byVariant map[string]func() (string, error)
}{byVariant: map[string]func() (string, error){}}

// Build builds cmd/plusone and returns the path of the program, which is removed with the test process. Each variant is
// built once in a process. It may be called concurrently.
func Build(v Variant) (path string, err error) {
	name := fmt.Sprintf("%#v", v)
	builds.Lock()
	build := builds.byVariant[name]
	if build == nil {
		build = sync.OnceValues(v.build)
		builds.byVariant[name] = build
	}
	builds.Unlock()
	return build()
}

func (v Variant) build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir, err := testproc.ProcessDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "plusone")
	args := []string{"build", "-o", path, "-tags", strings.Join(v.Tags, ",")}
	if v.Race {
		args = append(args, "-race")
	}
	if len(v.Replace) > 0 {
		overlay, err := v.overlay(root, dir)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./cmd/plusone")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// overlay writes the changed sources into a folder, and what tells go build about them.
func (v Variant) overlay(root, dir string) (path string, err error) {
	changed, err := replace(root, v.Replace)
	if err != nil {
		return "", err
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, text := range changed {
		// The compiler goes by the end of the name.
		copied := filepath.Join(dir, fmt.Sprint(len(overlay.Replace), "-", filepath.Base(file)))
		if err := os.WriteFile(copied, text, 0o600); err != nil {
			return "", err
		}
		overlay.Replace[filepath.Join(root, filepath.FromSlash(file))] = copied
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, text, 0o600)
}

// Check reports replacements that Build would refuse because their texts are not where they should be.
func Check(replacements []Replacement) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	_, err = replace(root, replacements)
	return err
}

// replace returns the texts of the files that are changed.
func replace(root string, replacements []Replacement) (map[string][]byte, error) {
	changed := map[string][]byte{}
	for _, r := range replacements {
		text, ok := changed[r.File]
		if !ok {
			var err error
			if text, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(r.File))); err != nil {
				return nil, err
			}
		}
		if n := bytes.Count(text, []byte(r.Old)); n != 1 {
			return nil, fmt.Errorf("%s has what is to be replaced %d times:\n%s", r.File, n, testproc.Indent(r.Old))
		}
		changed[r.File] = bytes.Replace(text, []byte(r.Old), []byte(r.New), 1)
	}
	return changed, nil
}

// moduleRoot is the folder of the module that the test belongs to.
var moduleRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", errors.New("the test does not run within the module")
	}
	return filepath.Dir(file), nil
})
