package checker_test

import (
	"strings"
	"testing"

	"github.com/plusone-dev/plusone/internal/checker"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		url                 string
		addr                string
		encrypted, loopback bool
	}{
		{"grpc://127.0.0.1:9000", "127.0.0.1:9000", false, true},
		{"grpcs://checker.internal:443/", "checker.internal:443", true, false},
		{"http://localhost/check", "localhost", false, true},
		{"http://[::1]:80/check", "[::1]:80", false, true},
		{"https://checker.internal/v1/check", "checker.internal", true, false},
		{"http://localhost.example.com/", "localhost.example.com", false, false},
		{"http://127.0.0.1.example.com/", "127.0.0.1.example.com", false, false},
	} {
		target, err := checker.ParseTarget(test.url)
		if err != nil {
			t.Errorf("%s: %v", test.url, err)
			continue
		}
		if target.Addr() != test.addr || target.Encrypted() != test.encrypted || target.Loopback() != test.loopback {
			t.Errorf("%s: at %s, encrypted %t, on loopback %t", test.url, target.Addr(), target.Encrypted(), target.Loopback())
		}
	}
	for _, url := range []string{
		"", "s3cret", "127.0.0.1:9000", "ftp://s3cret", "grpc://", "grpc://host", "grpc://:9000", "grpc://host:9000/s3cret",
		"http://", "http:///s3cret", "http://user:s3cret@host/", "https://s3cret@host/", "https://host/?key=s3cret", "https://host/?",
		"https://host/#s3cret", "grpc://host:0", "grpc://host:65536", "http://host:s3cret/", "http://ho st/s3cret", "\x00s3cret",
	} {
		_, err := checker.ParseTarget(url)
		if err == nil {
			t.Errorf("%q is accepted", url)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error repeats it: %v", url, err)
		}
	}
}
