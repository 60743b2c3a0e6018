package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// serverCPU is the CPU time that a server has used, of which its metrics tell; false if they cannot be had.
func serverCPU(ctx context.Context, addr string) (time.Duration, bool) {
	if addr == "" {
		return 0, false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", http.NoBody)
	if err != nil {
		return 0, false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "process_cpu_seconds_total "); ok {
			var seconds float64
			if _, err := fmt.Sscan(text, &seconds); err == nil {
				return time.Duration(seconds * float64(time.Second)), true
			}
		}
	}
	return 0, false
}
