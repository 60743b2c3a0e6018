// Command load puts ghz on a running plusone, one kind of load after the other, and prints a table in Markdown:
//
//	go run ./internal/load -addr 127.0.0.1:50051 -http 127.0.0.1:8080 -for 10s
//
// It needs the server's reflection. It changes counters below load/, so it is not for a system whose numbers matter to anybody.
// What ghz itself costs is said above the table.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// ghz is the load generator.
const ghz = "github.com/bojand/ghz/cmd/ghz@v0.121.0"

type settings struct {
	addr, http  string
	length      time.Duration
	concurrency int
	connections int
	seed        uint64
}

func main() {
	var s settings
	flag.StringVar(&s.addr, "addr", "127.0.0.1:50051", "the server's gRPC address, in plain text")
	flag.StringVar(&s.http, "http", "127.0.0.1:8080", "the server's HTTP address, of which CPU time is read; empty for none")
	flag.DurationVar(&s.length, "for", 10*time.Second, "length of each load")
	flag.IntVar(&s.concurrency, "c", 50, "calls under way")
	flag.IntVar(&s.connections, "connections", 4, "connections")
	flag.Uint64Var(&s.seed, "seed", 1, "seed of keys and actors")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	dir, err := os.MkdirTemp("", "plusone-load-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Printf("%s, %d calls under way over %d connections, %v each\n\n", s.addr, s.concurrency, s.connections, s.length)
	fmt.Print("ghz itself spends some 95 µs of CPU on a call. On the machine of the server it takes away more than plusone needs, so read\n" +
		"the server's CPU time for a call beside the calls a second.\n\n")
	fmt.Println("| load | calls/s | p50 | p99 | errors | server CPU a call |\n|---|---|---|---|---|---|")
	for _, load := range loads(s.seed) {
		before, known := serverCPU(ctx, s.http)
		reports, err := load.run(ctx, s, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", load.name, err)
		}
		after, stillKnown := serverCPU(ctx, s.http)
		calls := 0
		for _, r := range reports {
			calls += r.Count
		}
		cpu := "unknown"
		if known && stillKnown && calls > 0 {
			cpu = ((after - before) / time.Duration(calls)).Round(100 * time.Nanosecond).String()
		}
		for i, r := range reports {
			fmt.Printf("| %s | %.0f | %v | %v | %d | %s |\n", load.parts[i].name(load.name), r.Rps, r.at(50), r.at(99), r.errors(), cpu)
		}
	}
	return nil
}

// report is what ghz writes, as far as it is used here.
type report struct {
	Count               int
	Rps                 float64
	LatencyDistribution []struct {
		Percentage int
		Latency    time.Duration
	}
	ErrorDistribution map[string]int
}

func (r report) at(percentage int) time.Duration {
	for _, d := range r.LatencyDistribution {
		if d.Percentage == percentage {
			return d.Latency.Round(10 * time.Microsecond)
		}
	}
	return 0
}

// errors are calls that failed, save those that the end of the load cut off.
func (r report) errors() int {
	n := 0
	for _, count := range r.ErrorDistribution {
		n += count
	}
	return n
}

// run has ghz make the calls of all parts at the same time.
func (l load) run(ctx context.Context, s settings, dir string) ([]report, error) {
	reports, failures := make([]report, len(l.parts)), make([]error, len(l.parts))
	var group sync.WaitGroup
	for i, p := range l.parts {
		group.Go(func() {
			data := filepath.Join(dir, fmt.Sprint(i, ".json"))
			reports[i], failures[i] = p.run(ctx, s, data)
		})
	}
	group.Wait()
	return reports, errors.Join(failures...)
}

func (p part) run(ctx context.Context, s settings, data string) (report, error) {
	requests, err := json.Marshal(p.requests)
	if err != nil {
		return report{}, err
	}
	if err := os.WriteFile(data, requests, 0o600); err != nil {
		return report{}, err
	}
	share := max(1, s.concurrency*p.percent/100)
	cmd := exec.CommandContext(ctx, "go", "run", ghz, "--insecure", "--call", "plusone.v1.CounterService."+p.method,
		"--data-file", data, "--duration", s.length.String(), "--duration-stop", "wait",
		"--concurrency", strconv.Itoa(share), "--connections", strconv.Itoa(min(share, s.connections)),
		"--format", "json", s.addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return report{}, err
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("ghz wrote: %w", err)
	}
	return r, nil
}
