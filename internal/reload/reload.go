// Package reload keeps in force what was made of a file, and follows the file when it changes: replaced by a rename, by
// the swap of a symbolic link as Kubernetes does it, or written in place.
//
// A file that cannot be used never replaces one that can: what was loaded before stays in force, with an error in the log
// and a metric that says so.
package reload

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultInterval is how often a file is looked at: it is in force a moment after it was put there, and reading a
	// small file costs next to nothing.
	DefaultInterval = 2 * time.Second
	// DefaultMaxBytes is ample for what people write by hand.
	DefaultMaxBytes = 1 << 20
	// settling is for how long a change must stay as it is before it is loaded: half of a file may be valid too. A writer
	// in place that pauses for longer than this must use a rename.
	settling = 100 * time.Millisecond
)

// Options say which file is followed, and how. Only Name and Path are needed.
type Options struct {
	// Name is what the file is for, such as "policy": a label of metrics, and a word in the log.
	Name string
	// Path of the file. It is looked up anew each time.
	Path string
	// MaxBytes is how large the file may be. The default is DefaultMaxBytes.
	MaxBytes int64
	// Interval is how often it is looked at. The default is DefaultInterval.
	Interval time.Duration
	// Logger takes what becomes of changes. The default is none.
	Logger *slog.Logger
	// Metrics, if not nil, count them.
	Metrics *Metrics
	// OnChange, if not nil, is called after another value has come into force, never by two goroutines at once. It must
	// not call Reload or Close.
	OnChange func()
}

// File is a value that was made of a file, or of several that go together. Its methods may be called concurrently.
type File[T any] struct {
	options Options
	paths   []string
	load    func(data [][]byte) (T, error)
	current atomic.Pointer[T]

	mu sync.Mutex // held by whoever looks
	// seen is the fingerprint of what the last look found, and err says why that is not in force.
	seen string
	err  error
	// inForce is the fingerprint of what current was made of.
	inForce string

	cancel context.CancelFunc
	done   chan struct{}
}

// Open loads a file, and follows it until Close. It fails if the file cannot be used as it is now.
//
// load makes a value of the content, which it may keep. It is never called concurrently. Its errors are logged, so they
// must not quote secrets.
func Open[T any](o Options, load func(data []byte) (T, error)) (*File[T], error) {
	return open(o, []string{o.Path}, func(data [][]byte) (T, error) { return load(data[0]) })
}

// OpenPair is Open for two files that are of use only together, such as a certificate and its key: both are loaded when
// either changes.
func OpenPair[T any](o Options, second string, load func(first, second []byte) (T, error)) (*File[T], error) {
	return open(o, []string{o.Path, second}, func(data [][]byte) (T, error) { return load(data[0], data[1]) })
}

func open[T any](o Options, paths []string, load func([][]byte) (T, error)) (*File[T], error) {
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxBytes)
	o.Interval = cmp.Or(o.Interval, DefaultInterval)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("file", o.Name, "path", strings.Join(paths, ", "))
	f := &File[T]{options: o, paths: paths, load: load, done: make(chan struct{})}
	data, fingerprint, err := f.read()
	if err == nil {
		err = f.use(data, fingerprint)
	}
	if err != nil {
		return nil, fmt.Errorf("%s file: %w", o.Name, err)
	}
	o.Metrics.Opened(o.Name)
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	go f.follow(ctx)
	return f, nil
}

// Get returns the value in force. It costs an atomic load.
func (f *File[T]) Get() T { return *f.current.Load() }

// Reload looks at the file at once. An error means that what is there now is not in force.
func (f *File[T]) Reload() error { return f.look(context.Background(), 0) }

// Close ends the following. The value stays as it is.
func (f *File[T]) Close() {
	f.cancel()
	<-f.done
}

func (f *File[T]) follow(ctx context.Context) {
	defer close(f.done)
	ticker := time.NewTicker(f.options.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			_ = f.look(ctx, settling) // look has logged it
		case <-ctx.Done():
			return
		}
	}
}

// look loads the file if it has changed and then stays the same for a while, and returns why it is not in force.
func (f *File[T]) look(ctx context.Context, settling time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.fingerprint()
	if found == f.seen {
		return f.err
	}
	if settling > 0 {
		select {
		case <-time.After(settling):
		case <-ctx.Done():
			return f.err
		}
		if f.fingerprint() != found {
			return f.err // it is being written: the next look sees more
		}
	}
	data, found, err := f.read()
	switch {
	case err == nil && found == f.inForce:
		if f.err == nil { // it was another one only for a moment
			return nil
		}
		f.seen, f.err = found, nil
		f.options.Metrics.settled(f.options.Name)
		f.options.Logger.Info("the file is again what is in force")
		return nil
	case err == nil:
		err = f.use(data, found)
	}
	f.seen, f.err = found, err
	if err != nil {
		f.options.Metrics.Failed(f.options.Name)
		f.options.Logger.Error("the file cannot be used, what was loaded before stays in force", "error", err)
		return err
	}
	f.options.Metrics.Succeeded(f.options.Name)
	f.options.Logger.Info("the file was loaded")
	if f.options.OnChange != nil {
		f.options.OnChange()
	}
	return nil
}

// use puts what load makes of the data into force.
func (f *File[T]) use(data [][]byte, fingerprint string) error {
	value, err := f.load(data)
	if err != nil {
		return err
	}
	f.current.Store(&value)
	f.seen, f.inForce = fingerprint, fingerprint
	return nil
}

// fingerprint tells contents apart, without holding them. That of files that cannot be read is the reason.
func (f *File[T]) fingerprint() string {
	var sums []byte
	for _, path := range f.paths {
		hash := sha256.New()
		if err := copyFile(hash, path, f.options.MaxBytes); err != nil {
			return err.Error()
		}
		sums = hash.Sum(sums)
	}
	return string(sums)
}

// read reads the files. The fingerprint is that of what it returns.
func (f *File[T]) read() (data [][]byte, fingerprint string, err error) {
	var sums []byte
	for _, path := range f.paths {
		var content bytes.Buffer
		if err := copyFile(&content, path, f.options.MaxBytes); err != nil {
			return nil, err.Error(), err
		}
		sum := sha256.Sum256(content.Bytes())
		sums = append(sums, sum[:]...)
		data = append(data, content.Bytes())
	}
	return data, string(sums), nil
}

// copyFile copies a file of at most limit bytes.
func copyFile(to io.Writer, path string, limit int64) error {
	if path == "" {
		return errors.New("it has no path")
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		return fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	n, err := io.Copy(to, io.LimitReader(file, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return err
}
