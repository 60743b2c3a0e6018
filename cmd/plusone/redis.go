package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/rawconn"
)

const (
	// redisDialTimeout is short, because a connection is made while callers wait.
	redisDialTimeout = time.Second
	// redisConnTimeout is how long a connection may be silent while an answer is due before it is given up for
	// another one. Calls have shorter deadlines of their own.
	redisConnTimeout = 3 * time.Second
	// redisCheckTimeout bounds the question about one node's settings at the start.
	redisCheckTimeout = 5 * time.Second
	// minRedisMajor is the oldest version whose scripts have flags.
	minRedisMajor = 7
)

// openRedis connects to Redis and checks that it can be trusted with counts. Errors never quote the URL.
func openRedis(ctx context.Context, url string, logger *slog.Logger) (rueidis.Client, error) {
	options, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the Redis URL is not valid: want redis://user:password@host:port, " +
			"rediss:// for TLS, and further nodes of a cluster as ?addr=host:port")
	}
	options.Dialer.Timeout = cmp.Or(options.Dialer.Timeout, redisDialTimeout)
	options.ConnWriteTimeout = cmp.Or(options.ConnWriteTimeout, redisConnTimeout)
	options.ClientName = cmp.Or(options.ClientName, "plusone")
	options.DisableCache = true // all reads are scripts
	network := "tcp"
	if options.DialCtxFn != nil { // the URL is of a socket
		network = "unix"
	}
	options.DialCtxFn = dialRedis(network)
	client, err := rueidis.NewClient(options)
	if err != nil {
		return nil, fmt.Errorf("connect to Redis: %w", err)
	}
	if err := checkRedis(ctx, client, logger); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// dialRedis returns how rueidis connects to a node: as it does itself, with a rawconn.Conn in between.
func dialRedis(network string) func(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	return func(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialer.Timeout)
		defer cancel()
		conn, err := rawconn.Over(dialer.DialContext)(ctx, network, addr)
		if err != nil || config == nil {
			return conn, err
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return secured, nil
	}
}

// checkRedis checks the settings of all nodes that answer.
func checkRedis(ctx context.Context, client rueidis.Client, logger *slog.Logger) error {
	answered := false
	var failures []error
	for addr, node := range client.Nodes() {
		timed, cancel := context.WithTimeout(ctx, redisCheckTimeout)
		// INFO has what is needed, also where CONFIG is not allowed.
		text, err := node.Do(timed, node.B().Info().Build()).ToString()
		cancel()
		if err != nil {
			failures = append(failures, fmt.Errorf("ask Redis %s for its settings: %w", addr, err))
			continue
		}
		answered = true
		if err := checkRedisNode(parseInfo(text), logger.With("redis", addr)); err != nil {
			return fmt.Errorf("redis %s: %w", addr, err)
		}
	}
	if !answered {
		return errors.Join(failures...)
	}
	for _, err := range failures { // a replica may be down
		logger.Warn("a Redis node does not answer, its settings were not checked", "error", err)
	}
	return nil
}

func checkRedisNode(info map[string]string, logger *slog.Logger) error {
	version := info["redis_version"]
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < minRedisMajor {
		return fmt.Errorf("its version is %q, and must be %d.0 or later", version, minRedisMajor)
	}
	if bits := info["arch_bits"]; bits == "32" {
		return fmt.Errorf("it is a program of %s bits, whose scripts cannot write the numbers of windows: run one of 64 bits", bits)
	}
	if policy := info["maxmemory_policy"]; strings.HasPrefix(policy, "allkeys-") {
		return fmt.Errorf("its maxmemory-policy is %s, which lets it evict counts that are not in Postgres yet: "+
			"set it to volatile-lfu, which evicts only what can be loaded again", policy)
	}
	if info["aof_enabled"] == "0" {
		logger.Warn("redis has no append-only file: a crash of Redis loses all changes since its last snapshot " +
			"that are not in Postgres yet; set appendonly to yes")
	}
	return nil
}

// parseInfo reads the answer to INFO.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}
