package history

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
)

// version begins a file. It changes with the fields of Event.
const version = "plusone history 2"

// writer writes a history as a gob stream: a few dozen bytes an event, and no code of ours.
type writer struct {
	buffer *bufio.Writer
	gob    *gob.Encoder
	err    error
}

func newWriter(file io.Writer, cfg Config) *writer {
	buffer := bufio.NewWriterSize(file, 1<<20)
	w := &writer{buffer: buffer, gob: gob.NewEncoder(buffer)}
	w.err = errors.Join(w.gob.Encode(version), w.gob.Encode(cfg))
	return w
}

// write keeps the first error for close.
func (w *writer) write(e *Event) {
	if w.err == nil {
		w.err = w.gob.Encode(e)
	}
}

func (w *writer) close() error { return errors.Join(w.err, w.buffer.Flush()) }

type reader struct{ gob *gob.Decoder }

func newReader(file io.Reader) (*reader, Config, error) {
	r := &reader{gob: gob.NewDecoder(bufio.NewReaderSize(file, 1<<20))}
	var found string
	var cfg Config
	if err := r.gob.Decode(&found); err != nil || found != version {
		return nil, cfg, fmt.Errorf("not a history of this version: %q, %w", found, err)
	}
	return r, cfg, r.gob.Decode(&cfg)
}

// read returns io.EOF at the end, also where a process that was killed left half an event.
func (r *reader) read(e *Event) error {
	err := r.gob.Decode(e)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}
