package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plusone-dev/plusone/internal/reload"
)

const (
	// remoteInterval is how often keys are fetched. Issuers publish a key well before they use it.
	remoteInterval = 5 * time.Minute
	// renewInterval is the least time between two fetches because of a token with an unknown key, as anybody can make
	// up such tokens.
	renewInterval = 30 * time.Second
	// remoteTimeout bounds a fetch, and so how long a call may wait for it.
	remoteTimeout = 5 * time.Second
	// maxWaiting bounds the calls that wait for a fetch. Further ones are refused at once.
	maxWaiting = 1_000
)

// remoteOptions say where keys are fetched. Only URL is needed.
type remoteOptions struct {
	URL      string
	Interval time.Duration
	Client   *http.Client
	Logger   *slog.Logger
	Metrics  *reload.Metrics
	// OnChange is called when other keys have come into force.
	OnChange func()
}

// remoteKeys are public keys that are fetched from a URL. If that fails, those of the last time stay.
type remoteKeys struct {
	remoteOptions

	current atomic.Pointer[[]publicKey]
	// inForce is the hash of what current was made of. Only one fetch at a time touches it.
	inForce digest
	waiting atomic.Int64

	// ctx ends when the keys are closed, and with it all fetches.
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu sync.Mutex
	// fetching is closed when the fetch ends that is under way; nil if there is none.
	fetching chan struct{}
	renewed  time.Time // when an unknown key was the reason for a fetch last
	ended    bool
}

// openRemoteKeys fetches the keys, and again from time to time until close.
func openRemoteKeys(ctx context.Context, o remoteOptions) (*remoteKeys, error) {
	target, err := url.Parse(o.URL)
	if err != nil || target.Host == "" {
		return nil, errors.New("the URL of the keys is not valid")
	}
	if target.User != nil {
		return nil, errors.New("the URL of the keys must not have a user or a password: public keys need none")
	}
	o.Interval = cmp.Or(o.Interval, remoteInterval)
	if o.Client == nil {
		o.Client = &http.Client{CheckRedirect: checkRedirect}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("file", "jwks", "host", target.Host)
	r := &remoteKeys{remoteOptions: o}
	within, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	if _, err := r.load(within); err != nil {
		return nil, fmt.Errorf("fetch the keys of JWTs from %s: %w", target.Host, err)
	}
	o.Metrics.Opened("jwks")
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.done.Go(r.follow)
	return r, nil
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" || len(via) > 3 {
		return errors.New("it redirects too often, or away from https")
	}
	return nil
}

func (r *remoteKeys) get() []publicKey { return *r.current.Load() }

func (r *remoteKeys) close() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.cancel()
	r.done.Wait()
}

func (r *remoteKeys) follow() {
	ticker := time.NewTicker(r.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.mu.Lock()
			r.start()
			r.mu.Unlock()
		case <-r.ctx.Done():
			return
		}
	}
}

// start starts a fetch unless one is under way. The lock is held.
func (r *remoteKeys) start() {
	if r.fetching != nil || r.ended {
		return
	}
	ended := make(chan struct{})
	r.fetching = ended
	r.done.Go(func() {
		r.refresh()
		r.mu.Lock()
		r.fetching = nil
		r.mu.Unlock()
		close(ended)
	})
}

// renew waits for a fetch if one is under way, which it starts if the last one for an unknown key is long enough ago.
func (r *remoteKeys) renew(ctx context.Context) {
	r.mu.Lock()
	if now := time.Now(); r.fetching == nil && now.Sub(r.renewed) >= renewInterval {
		r.renewed = now
		r.start()
	}
	fetching := r.fetching
	r.mu.Unlock()
	if fetching == nil {
		return
	}
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > maxWaiting {
		return
	}
	select {
	case <-fetching:
	case <-ctx.Done():
	}
}

// refresh fetches the keys. Those that are there stay if that fails.
func (r *remoteKeys) refresh() {
	ctx, cancel := context.WithTimeout(r.ctx, remoteTimeout)
	defer cancel()
	changed, err := r.load(ctx)
	if err != nil {
		r.Metrics.Failed("jwks")
		r.Logger.Error("the keys of JWTs cannot be fetched, those of the last time stay in force", "error", err)
		return
	}
	r.Metrics.Succeeded("jwks")
	if changed && r.OnChange != nil {
		r.OnChange()
	}
}

// load puts what is at the URL into force, if it is not already.
func (r *remoteKeys) load(ctx context.Context) (changed bool, err error) {
	data, err := r.fetch(ctx)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(data)
	if r.current.Load() != nil && sum == r.inForce {
		return false, nil
	}
	public, err := parseJWKS(data)
	if err != nil {
		return false, err
	}
	r.current.Store(&public)
	r.inForce = sum
	return true, nil
}

func (r *remoteKeys) fetch(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, http.NoBody)
	if err != nil {
		return nil, errors.New("the URL is not valid")
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		var failure *url.Error
		if errors.As(err, &failure) { // it quotes the URL, whose query may be confidential
			err = failure.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKSBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxJWKSBytes {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxJWKSBytes)
	}
	return data, nil
}
