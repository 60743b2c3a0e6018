package shard

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/rueidis"

	"github.com/plusone-dev/plusone/internal/counter"
)

// failure says what an error of a script means for its effect.
type failure uint8

const (
	// lostAnswer: the script may have run.
	lostAnswer failure = iota
	// notSent: the script cannot have run, and may later.
	notSent
	// refusedNow: Redis refused the script as a whole, and may take it later.
	refusedNow
	// refusedFull: Redis is out of memory.
	refusedFull
	// broken: Redis will refuse the script every time.
	broken
)

// passing are the error replies of a Redis that is starting, failing over, or busy. All are given before a
// script has written anything.
var passing = []string{
	"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "NOREPLICAS", "BUSY", "MISCONF", "MOVED", "ASK",
}

func classify(err error) failure {
	if reply, ok := rueidis.IsRedisErr(err); ok {
		text := strings.TrimPrefix(reply.Error(), "ERR ")
		if strings.HasPrefix(text, "OOM") {
			return refusedFull
		}
		for _, prefix := range passing {
			if strings.HasPrefix(text, prefix) {
				return refusedNow
			}
		}
		return broken
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.Is(err, rueidis.ErrClosing) {
		return notSent
	}
	if errors.Is(err, errAnswer) {
		return broken
	}
	return lostAnswer
}

// readError is how a failed read or load is reported.
func readError(err error) error {
	switch classify(err) {
	case refusedFull:
		return fmt.Errorf("%w: %w", counter.ErrFull, err)
	case broken:
		return err
	default:
		return fmt.Errorf("%w: %w", counter.ErrUnavailable, err)
	}
}
