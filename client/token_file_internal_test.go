package client

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A token that is replaced is used soon, and the last one while there is none.
func TestTokenFileIsReadAgain(t *testing.T) {
	t.Parallel()
	f := &tokenFile{path: filepath.Join(t.TempDir(), "token")}
	for _, step := range []struct{ content, want string }{
		{"one", "one"}, {"two", "two"}, {"", "two"}, {"three\n", "three"},
	} {
		if err := os.WriteFile(f.path, []byte(step.content), 0o600); err != nil {
			t.Fatal(err)
		}
		f.until = time.Time{}
		for range 2 {
			if got, err := f.token(); got != step.want || err != nil {
				t.Errorf("with %q in the file the token is %q, %v", step.content, got, err)
			}
		}
		if left := time.Until(f.until); left <= 0 || left > tokenAge {
			t.Errorf("it is read again in %v", left)
		}
	}
}
