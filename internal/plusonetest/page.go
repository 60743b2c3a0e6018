package plusonetest

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Page reads a page of the HTTP side. It fails the test.
func (i *Instance) Page(path string) (code int, body string) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.HTTPAddr+path, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Metric is the sum of a metric over all its labels, 0 if there is none of that name. Of a histogram, ask for the
// name with _count or _sum. It fails the test.
func (i *Instance) Metric(name string) float64 {
	i.t.Helper()
	_, body := i.Page("/metrics")
	var sum float64
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			i.t.Fatalf("%s: %v", strings.TrimSpace(line), err)
		}
		sum += value
	}
	return sum
}
