// Command check follows histories that the fault suite has written, and prints what they break:
//
//	go run ./internal/history/check bin/chaos/*.history
package main

import (
	"fmt"
	"os"

	"github.com/plusone-dev/plusone/internal/history"
)

func main() {
	code := 0
	for _, path := range os.Args[1:] {
		if !check(path) {
			code = 1
		}
	}
	os.Exit(code)
}

// check reports whether a history was read and breaks no promise.
func check(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	defer file.Close()
	c, err := history.Replay(file)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
		return false
	}
	for _, v := range c.Violations() {
		fmt.Printf("%s: after %v, promise %d: %s\n", path, v.At, v.Promise, v.Text)
	}
	s := c.Stats()
	fmt.Printf("%s: %d operations checked, %d in doubt, %d promises broken\n", path, s.Checked(), c.InDoubt(), s.Violations)
	return s.Violations == 0
}
