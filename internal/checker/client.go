package checker

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/guard"
)

// Config is how a Client is set. All fields must be set that do not say otherwise.
type Config struct {
	// Target is whom it asks.
	Target Target
	// CA are the authorities that may have signed the checker's certificate. Nil are those of the system.
	CA *x509.CertPool
	// Token returns the secret by which plusone shows the checker who it is, or an empty one. It is called for each
	// question, concurrently. Nil is none.
	Token func() string

	// Timeout is how long a question may take.
	Timeout time.Duration
	// MaxInFlight bounds the questions under way.
	MaxInFlight int
	// CacheTTL is how long an answer is kept at most. 0 keeps none.
	CacheTTL time.Duration
	// CacheEntries bounds the answers that are kept, of some 200 bytes each.
	CacheEntries int
	// FailOpen lets a change in if the checker cannot tell.
	FailOpen bool

	Logger   *slog.Logger
	Registry prometheus.Registerer
}

// The breaker opens when half of at least breakerMinimum questions of the last breakerInterval failed.
const (
	breakerInterval = 10 * time.Second
	breakerBuckets  = 10
	breakerMinimum  = 20
	// breakerOpenFor is how long no question is asked. It costs one caller a timeout each time that the checker turns
	// out to be down still, so it can be short.
	breakerOpenFor = time.Second
)

// The failures that are not the checker's.
var (
	errBusy   = errors.New("too many questions are under way")
	errPaused = errors.New("the checker is not asked for a moment, since it keeps failing")
	errClosed = errors.New("the guard is closed")
)

// asker asks a checker. It is called concurrently. Its errors are fit for a log.
type asker interface {
	ask(ctx context.Context, q guard.Question) (*guardv1.CheckResponse, error)
	close() error
}

// Client asks a checker. It implements guard.Guard.
type Client struct {
	asker   asker
	config  Config
	cache   *cache
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	metrics *metrics
	log     failureLog

	// ctx ends when the client is closed, and with it all questions.
	ctx    context.Context
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu     sync.Mutex
	asked  map[key]*flight // those under way, MaxInFlight at most
	closed bool
}

var _ guard.Guard = (*Client)(nil)

// flight is a question under way, or one that was answered.
type flight struct {
	done   chan struct{} // closed when it is answered, or failed
	answer answer
	err    error
}

// New returns a client. It does not wait for the checker, which may be down. Close it.
func New(c Config) (*Client, error) {
	asker, err := dial(c)
	if err != nil {
		return nil, err
	}
	client, err := newClient(asker, c)
	if err != nil {
		return nil, errors.Join(err, asker.close())
	}
	return client, nil
}

func newClient(asker asker, config Config) (*Client, error) {
	c := &Client{
		asker: asker, config: config, metrics: newMetrics(), asked: make(map[key]*flight),
		log: failureLog{logger: config.Logger, failOpen: config.FailOpen},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if config.CacheTTL > 0 {
		var err error
		if c.cache, err = newCache(config.CacheEntries, config.CacheTTL); err != nil {
			return nil, err
		}
	}
	c.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: breakerInterval, BucketPeriod: breakerInterval / breakerBuckets, Timeout: breakerOpenFor,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			answered := n.TotalSuccesses + n.TotalFailures
			return answered >= breakerMinimum && n.TotalFailures*2 >= answered
		},
		OnStateChange: func(_ string, from, to gobreaker.State) {
			switch {
			case from == gobreaker.StateClosed:
				c.log.paused()
			case to == gobreaker.StateClosed:
				c.log.resumed()
			}
		},
	})
	if err := c.metrics.register(config.Registry, c.breaker.State); err != nil {
		return nil, err
	}
	return c, nil
}

// Check answers from what is known, or else asks the checker. The deadline of ctx ends the wait, not the question, for
// which others may wait too.
func (c *Client) Check(ctx context.Context, q guard.Question) (guard.Decision, error) {
	if !validToken(q.Token) {
		// Not a failure: who sends nonsense must not be let in for it.
		c.metrics.denied.Inc()
		return guard.Decision{Reason: guard.ReasonTokenInvalid}, nil
	}
	k := keyOf(&q)
	if kept, ok := c.cache.get(k); ok {
		c.metrics.hits.Inc()
		return c.decide(kept), nil
	}
	asked, err := c.join(k, q)
	if err != nil {
		if !errors.Is(err, errPaused) { // that was logged when it began
			c.log.failed(err)
		}
		return c.fail(err)
	}
	if err := deadline.Wait(ctx, asked.done); err != nil {
		return guard.Decision{}, err
	}
	if asked.err != nil {
		return c.fail(asked.err)
	}
	return c.decide(asked.answer), nil
}

// join returns a question that is under way, and asks it if it is not.
func (c *Client) join(k key, q guard.Question) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if asked, ok := c.asked[k]; ok {
		return asked, nil
	}
	// It may have been answered since the caller looked. A token may be good for only one question.
	if kept, ok := c.cache.get(k); ok {
		c.metrics.hits.Inc()
		return &flight{answer: kept, done: closedChannel}, nil
	}
	switch {
	case c.closed:
		return nil, errClosed
	case len(c.asked) >= c.config.MaxInFlight:
		return nil, errBusy
	}
	report, err := c.breaker.Allow()
	if err != nil {
		return nil, errPaused
	}
	asked := &flight{done: make(chan struct{})}
	c.asked[k] = asked
	c.asking.Go(func() {
		c.ask(asked, q)
		report(asked.err)
		c.mu.Lock()
		if asked.err == nil {
			c.cache.put(k, asked.answer)
		}
		delete(c.asked, k)
		c.mu.Unlock()
		close(asked.done)
	})
	return asked, nil
}

var closedChannel = func() chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}()

// ask asks a question, and notes the answer or the failure in it.
func (c *Client) ask(asked *flight, q guard.Question) {
	ctx, cancel := context.WithTimeout(c.ctx, c.config.Timeout)
	defer cancel()
	began := time.Now()
	resp, err := c.asker.ask(ctx, q)
	if err == nil {
		asked.answer, err = answerOf(resp)
	}
	c.metrics.callSeconds.Observe(time.Since(began).Seconds())
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v: %w", c.config.Timeout, err)
		}
		asked.err = err
		c.log.failed(err)
	}
}

func (c *Client) decide(a answer) guard.Decision {
	if a.allowed {
		c.metrics.allowed.Inc()
		return guard.Decision{Allowed: true}
	}
	c.metrics.denied.Inc()
	return guard.Decision{Reason: a.reason}
}

// fail decides without an answer.
func (c *Client) fail(err error) (guard.Decision, error) {
	if c.config.FailOpen {
		c.metrics.failedOpen.Inc()
		return guard.Decision{Allowed: true}, nil
	}
	c.metrics.failedClosed.Inc()
	// What it failed with is for the log. In particular, that a question was late is not that the caller is.
	return guard.Decision{}, fmt.Errorf("%w: %v", guard.ErrUnavailable, err)
}

// Close ends the questions under way, waits for that, and closes the connections.
func (c *Client) Close() error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.mu.Unlock()
	if again {
		return nil
	}
	c.cancel()
	c.asking.Wait()
	return c.asker.close()
}
