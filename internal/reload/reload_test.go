package reload_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/plusone-dev/plusone/internal/reload"
)

// tick is longer than it takes to notice a change.
const tick = 3 * time.Second

// upper refuses what begins with "bad".
func upper(data []byte) (string, error) {
	if bytes.HasPrefix(data, []byte("bad")) {
		return "", errors.New("it is bad")
	}
	return strings.ToUpper(string(data)), nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// replace renames a new file to path.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	must(t, os.Rename(path+".new", path))
}

type opened struct {
	*reload.File[string]

	log      safeBuffer
	registry *prometheus.Registry
	changes  atomic.Int64
}

// safeBuffer is a log that may be read while it is written.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// open follows a file in a synctest bubble.
func open(t *testing.T, path string) *opened {
	t.Helper()
	o := &opened{registry: prometheus.NewRegistry()}
	var err error
	o.File, err = reload.Open(reload.Options{
		Name: "words", Path: path, MaxBytes: 100, Logger: slog.New(slog.NewTextHandler(&o.log, nil)),
		Metrics: reload.NewMetrics(o.registry), OnChange: func() { o.changes.Add(1) },
	}, upper)
	must(t, err)
	t.Cleanup(o.Close)
	return o
}

func (o *opened) want(t *testing.T, value string, changes int64) {
	t.Helper()
	time.Sleep(tick)
	synctest.Wait()
	if o.Get() != value || o.changes.Load() != changes {
		t.Errorf("in force is %q after %d changes, want %q after %d\n%s", o.Get(), o.changes.Load(), value, changes, o.log.String())
	}
}

func (o *opened) wantMetrics(t *testing.T, failing, ok, failed float64) {
	t.Helper()
	families, err := o.registry.Gather()
	must(t, err)
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, label := range m.Label {
				name += " " + label.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	delete(got, "plusone_reload_last_success_timestamp_seconds words")
	if want := map[string]float64{
		"plusone_reload_failing words": failing, "plusone_reloads_total words ok": ok, "plusone_reloads_total words error": failed,
	}; !maps.Equal(got, want) {
		t.Errorf("metrics are %v, want %v", got, want)
	}
}

func TestFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "one")
		o := open(t, path)
		o.wantMetrics(t, 0, 0, 0)
		o.want(t, "ONE", 0)
		write(t, path, "two")
		o.want(t, "TWO", 1)
		replace(t, path, "three")
		o.want(t, "THREE", 2)
		must(t, os.Chtimes(path, time.Time{}, time.Now()))
		o.want(t, "THREE", 2)
		o.wantMetrics(t, 0, 2, 0)
		write(t, path, "four")
		must(t, o.Reload())
		if o.Get() != "FOUR" {
			t.Errorf("Reload left %q in force", o.Get())
		}
	})
}

// Kubernetes shows a volume's files through a link to a folder, and swaps that link.
func TestFollowsLinks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for _, version := range []string{"1", "2"} {
			must(t, os.Mkdir(filepath.Join(dir, ".."+version), 0o700))
			write(t, filepath.Join(dir, ".."+version, "file"), "v"+version)
		}
		must(t, os.Symlink("..1", filepath.Join(dir, "..data")))
		must(t, os.Symlink("..data/file", filepath.Join(dir, "file")))
		o := open(t, filepath.Join(dir, "file"))
		o.want(t, "V1", 0)
		must(t, os.Symlink("..2", filepath.Join(dir, "..new")))
		must(t, os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
		o.want(t, "V2", 1)
	})
}

// What cannot be used changes nothing, and is told of once.
func TestKeepsWhatWasGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good")
		o := open(t, path)
		for i, spoil := range []func(){
			func() { write(t, path, "bad") },
			func() { write(t, path, strings.Repeat("x", 101)) },
			func() { must(t, os.Remove(path)) },
			func() { must(t, os.Mkdir(path, 0o700)) },
		} {
			spoil()
			o.want(t, "GOOD", 0)
			o.want(t, "GOOD", 0)
			o.wantMetrics(t, 1, 0, float64(i+1))
			if n := strings.Count(o.log.String(), "level=ERROR"); n != i+1 {
				t.Errorf("%d errors are logged after %d faults:\n%s", n, i+1, o.log.String())
			}
			if err := o.Reload(); err == nil {
				t.Error("Reload reports no error")
			}
		}
		must(t, os.Remove(path))
		write(t, path, "good")
		o.want(t, "GOOD", 0)
		o.wantMetrics(t, 0, 0, 4)
		write(t, path, "better")
		o.want(t, "BETTER", 1)
		o.wantMetrics(t, 0, 1, 4)
	})
}

// A file that is being written is not loaded half-way.
func TestWaitsForTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "whole")
		o := open(t, path)
		for n := range 100 { // for longer than it takes to notice a change
			write(t, path, fmt.Sprint("part ", n))
			time.Sleep(33 * time.Millisecond) // never at the moment of a look
		}
		synctest.Wait()
		if o.Get() != "WHOLE" {
			t.Errorf("in force is %q", o.Get())
		}
		write(t, path, "all")
		o.want(t, "ALL", 1)
	})
}

func TestPair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
		write(t, first, "a")
		write(t, second, "a")
		f, err := reload.OpenPair(reload.Options{Name: "pair", Path: first}, second, func(a, b []byte) (string, error) {
			if !bytes.Equal(a, b) {
				return "", errors.New("they do not match")
			}
			return string(a), nil
		})
		must(t, err)
		t.Cleanup(f.Close)
		write(t, first, "b")
		time.Sleep(tick)
		if f.Get() != "a" {
			t.Errorf("half a pair is in force: %q", f.Get())
		}
		write(t, second, "b")
		time.Sleep(tick)
		if f.Get() != "b" {
			t.Errorf("in force is %q", f.Get())
		}
	})
}

func TestRefusesToOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad, large, pipe := filepath.Join(dir, "bad"), filepath.Join(dir, "large"), filepath.Join(dir, "pipe")
	write(t, bad, "bad")
	write(t, large, strings.Repeat("x", 11))
	must(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		"":                            "has no path",
		bad:                           "it is bad",
		large:                         "larger than 10 bytes",
		dir:                           "not a regular file",
		pipe:                          "not a regular file",
		filepath.Join(dir, "no such"): "no such file",
	} {
		_, err := reload.Open(reload.Options{Name: "words", Path: path, MaxBytes: 10}, upper)
		if err == nil || !strings.Contains(err.Error(), "words file: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want %q", path, err, want)
		}
	}
}
