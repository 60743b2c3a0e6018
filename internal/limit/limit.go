// Package limit bounds how often something may happen, by token buckets: in memory, for one process, or in Redis, for all
// that share it.
package limit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bounds of a Rate.
const (
	// MaxTokens is how many tokens a rate, or a burst, may have.
	MaxTokens = 1_000_000_000
	// MaxPerSecond is how many tokens a second may bring: clocks have microseconds.
	MaxPerSecond = 1_000_000
	// MaxFill is how long an empty bucket may take to fill, and so how long it must be remembered.
	MaxFill = 31 * 24 * time.Hour
)

// Rate is how fast a bucket fills, and how much it holds. Two are the same limit if they are equal.
type Rate struct {
	// Tokens are added in each Per, one by one and evenly spaced.
	Tokens int64
	Per    time.Duration
	// Burst is how many tokens the bucket holds. It is full at first.
	Burst int64
}

// ParseRate reads "100/1m" or "100/1m burst 20". Without a burst the bucket holds as many tokens as come in the period.
func ParseRate(text string) (Rate, error) {
	fields := strings.Fields(text)
	if len(fields) != 1 && (len(fields) != 3 || fields[1] != "burst") {
		return Rate{}, fmt.Errorf(`%q is not a rate: write "100/1m", or "100/1m burst 20"`, text)
	}
	count, period, found := strings.Cut(fields[0], "/")
	per, err := time.ParseDuration(period)
	if !found || err != nil {
		return Rate{}, fmt.Errorf(`%q is not a rate: write a number, a slash and a time, such as "100/1m"`, fields[0])
	}
	tokens, err := parseTokens(count)
	if err != nil {
		return Rate{}, err
	}
	r := Rate{Tokens: tokens, Per: per, Burst: tokens}
	if len(fields) == 3 {
		if r.Burst, err = parseTokens(fields[2]); err != nil {
			return Rate{}, fmt.Errorf("burst: %w", err)
		}
	}
	switch {
	case per < time.Millisecond || per > MaxFill:
		return Rate{}, fmt.Errorf("the time of a rate must be from 1ms to %v, not %v", MaxFill, per)
	case r.perSecond() > MaxPerSecond:
		return Rate{}, fmt.Errorf("a rate must be at most %d a second", MaxPerSecond)
	case r.tokens(r.Burst) > float64(MaxFill):
		return Rate{}, fmt.Errorf("a bucket must fill within %v, and one of %d tokens would not at this rate", MaxFill, r.Burst)
	}
	return r, nil
}

func parseTokens(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > MaxTokens {
		return 0, fmt.Errorf("%q must be a whole number from 1 to %d", text, MaxTokens)
	}
	return n, nil
}

// String is the rate as ParseRate reads it.
func (r Rate) String() string {
	text := strconv.FormatInt(r.Tokens, 10) + "/" + r.Per.String()
	if r.Burst != r.Tokens {
		text += " burst " + strconv.FormatInt(r.Burst, 10)
	}
	return text
}

func (r Rate) perSecond() float64 { return float64(r.Tokens) / r.Per.Seconds() }

// tokens is how long so many tokens take to come, in nanoseconds.
func (r Rate) tokens(n int64) float64 { return float64(n) * float64(r.Per) / float64(r.Tokens) }

// Kind says whom a limit holds for.
type Kind uint8

// The kinds.
const (
	// ActorKey limits what an actor does to one key.
	ActorKey Kind = iota
	// Actor limits what an actor does.
	Actor
	// Caller limits what a caller does, for whomever.
	Caller

	numKinds = int(Caller) + 1
)

// String is the name of the kind in policies, metrics and Redis.
func (k Kind) String() string { return [numKinds]string{"actor_key", "actor", "caller"}[k] }

// Want asks for tokens of a bucket.
type Want struct {
	Kind Kind
	// Scope tells apart buckets of one kind and name: the policy that states the limit, and the limit. All have as many
	// spaces.
	Scope string
	// Who is the actor or the caller, and Key the key if the kind has one. They have no spaces.
	Who, Key string
	Rate     Rate
	// Cost is how many tokens are taken. If it is more than the bucket holds, a full bucket will do: then the bucket
	// owes the rest.
	Cost int64
}

// maxDebt is the longest that a bucket is said to lack tokens, some 73 years: a batch may owe more than a Duration holds.
const maxDebt = time.Duration(1 << 61)

// takes is by how much the cost moves on the moment at which the bucket will be full, in nanoseconds.
func (w *Want) takes() int64 { return int64(min(math.Round(w.Rate.tokens(w.Cost)), float64(maxDebt))) }

// needed is how many tokens must be there.
func (w *Want) needed() int64 { return min(w.Cost, w.Rate.Burst) }

// Verdict is the answer to a request for tokens.
type Verdict struct {
	// Allowed says that all tokens were taken.
	Allowed bool
	// Lacking is the position of a bucket that lacks tokens, of those that do the one that does for longest, and Wait
	// how long it will.
	Lacking int
	Wait    time.Duration
}

// A bucket is kept as the moment at which it will be full: one that is full need not be kept. With T the time in which a
// token comes, taking n tokens moves that moment on by n*T, and may be done if it then is not further away than Burst*T.

// take returns the moment at which the bucket will be full after tokens were taken, or how long they lack. Moments are
// nanoseconds, full is in the past for a full bucket.
func (w *Want) take(full, now int64) (after int64, wait time.Duration) {
	full = max(full, now)
	needed := float64(full-now) + w.Rate.tokens(w.needed()) - w.Rate.tokens(w.Rate.Burst)
	if needed > 0.5 {
		return full, time.Duration(math.Ceil(needed))
	}
	return full + w.takes(), 0
}
