package checker_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// What a checker over HTTP must not do.
func TestBadAnswersOverHTTP(t *testing.T) {
	t.Parallel()
	const notJSON = "is not JSON of a CheckResponse"
	write := func(kind, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = io.WriteString(w, text)
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		cause   string
	}{
		"error":           {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, words, http.StatusForbidden) }, "status 403"},
		"no content":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "status 204"},
		"text":            {write("text/plain", `{"allowed": true}`), notJSON},
		"no kind":         {write("", `{"allowed": true}`), notJSON},
		"page":            {write("application/json", "<html>"+words), notJSON},
		"empty":           {write("application/json", ""), notJSON},
		"no decision":     {write("application/json", "{}"), "does not say whether"},
		"null":            {write("application/json", `{"allowed": null}`), "does not say whether"},
		"word":            {write("application/json", `{"allowed": "true"}`), notJSON},
		"twice":           {write("application/json", `{"allowed": true, "allowed": false}`), notJSON},
		"more behind":     {write("application/json", `{"allowed": true} {}`), notJSON},
		"list":            {write("application/json", `[{"allowed": true}]`), notJSON},
		"bad time":        {write("application/json", `{"allowed": true, "ttl": "`+words+`"}`), notJSON},
		"not UTF-8":       {write("application/json", "{\"allowed\": false, \"reason\": \"\xff\"}"), notJSON},
		"too long":        {write("application/json", `{"allowed": true}`+strings.Repeat(" ", 4096)), "more than 4096 bytes"},
		"long header":     {longHeader, "the connection broke"},
		"breaks off":      {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "the connection broke"},
		"never ends":      {neverEnds, "more than 4096 bytes"},
		"stops half-way":  {stopsHalfWay, "the connection broke"},
		"something else":  {hijacked("SSH-2.0-" + words + "\r\n"), "the connection broke"},
		"compressed":      {compressed, notJSON},
		"early hints":     {hijacked(strings.Repeat(earlyHint, 10_000)), "the connection broke"},
		"not JSON at all": {write("application/json", words), notJSON},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(test.handler)
			t.Cleanup(server.Close)
			failure(t, server.URL, test.cause, withSecret)
		})
	}
}

const earlyHint = "HTTP/1.1 103 Early Hints\r\nOwn-Words: x\r\n\r\n"

func longHeader(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Own-Words", strings.Repeat("A", 1<<16))
}

func neverEnds(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	for {
		if _, err := io.WriteString(w, `{"reason": `); err != nil {
			return
		}
	}
}

func stopsHalfWay(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"allowed": true}`)
}

func compressed(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff})
}

// hijacked writes a text in place of an answer.
func hijacked(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, text)
	}
}

// The secret goes to whom it is for, and nowhere else.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var followed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	t.Cleanup(elsewhere.Close)
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	t.Cleanup(server.Close)
	failure(t, server.URL, "status 307", withSecret)
	if followed.Load() != 0 {
		t.Error("the redirect was followed")
	}
}
