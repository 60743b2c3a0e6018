package server

import (
	"log/slog"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// maxLoggedKeys is how many keys of a request a line has.
const maxLoggedKeys = 10

// requestID is that of a request, or empty if it has none that can be logged.
func requestID(req any) string {
	if r, ok := req.(interface{ GetRequestId() string }); ok {
		return loggable(r.GetRequestId(), counter.MaxRequestIDBytes)
	}
	return ""
}

// loggable is a text of a request if it is what it should be. Anything else may be megabytes of anything.
func loggable(text string, maxBytes int) string {
	if textProblem(text, maxBytes) != "" {
		return ""
	}
	return text
}

// subjectAttrs are the keys and the actor of a request, for lines that may have them.
func subjectAttrs(req any) []slog.Attr {
	var attrs []slog.Attr
	if r, ok := req.(interface{ GetKey() string }); ok {
		if key := loggable(r.GetKey(), counter.MaxKeyBytes); key != "" {
			attrs = append(attrs, slog.String("key", key))
		}
	}
	if keys, n := keysOf(req); n > 0 {
		attrs = append(attrs, slog.Any("keys", keys), slog.Int("keys_total", n))
	}
	if r, ok := req.(interface{ GetActor() string }); ok {
		if actor := loggable(r.GetActor(), counter.MaxActorBytes); actor != "" {
			attrs = append(attrs, slog.String("actor", actor))
		}
	}
	return attrs
}

// keysOf are the first keys of a request of many, and how many there are.
func keysOf(req any) (keys []string, n int) {
	switch r := req.(type) {
	case *plusonev1.BatchIncrementRequest:
		for _, e := range r.Entries[:min(len(r.Entries), maxLoggedKeys)] {
			keys = append(keys, loggable(e.GetKey(), counter.MaxKeyBytes))
		}
		return keys, len(r.Entries)
	case interface{ GetKeys() []string }:
		for _, key := range r.GetKeys()[:min(len(r.GetKeys()), maxLoggedKeys)] {
			keys = append(keys, loggable(key, counter.MaxKeyBytes))
		}
		return keys, len(r.GetKeys())
	}
	return nil, 0
}
