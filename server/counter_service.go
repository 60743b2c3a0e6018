package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
)

// counterService implements plusone.v1.CounterService on a store and a cache.
type counterService struct {
	plusonev1.UnimplementedCounterServiceServer

	store   Store
	cache   *countCache
	config  Config
	metrics *metrics
	gate    *gate // nil lets everything in

	deadlines *deadline.Timers
}

// Increment changes one counter.
func (s *counterService) Increment(ctx context.Context, req *plusonev1.IncrementRequest,
) (*plusonev1.IncrementResponse, error) {
	var v violations
	change := checkIncrement(req, s.config.MaxDelta, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	if err := s.gate.change(ctx, &change, methodIncrement); err != nil {
		return nil, err
	}
	outcome, asOf, err := s.apply(ctx, change)
	if err != nil {
		return nil, err
	}
	return &plusonev1.IncrementResponse{Outcome: outcome, AsOf: asOf}, nil
}

// BatchIncrement changes many counters.
func (s *counterService) BatchIncrement(ctx context.Context, req *plusonev1.BatchIncrementRequest,
) (*plusonev1.BatchIncrementResponse, error) {
	var v violations
	change := checkBatch(req, s.config.MaxDelta, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	if err := s.gate.batch(ctx, req.Entries, &change); err != nil {
		return nil, err
	}
	outcome, asOf, err := s.apply(ctx, change)
	if err != nil {
		return nil, err
	}
	return &plusonev1.BatchIncrementResponse{Outcome: outcome, AsOf: asOf}, nil
}

// Get reads one counter.
func (s *counterService) Get(ctx context.Context, req *plusonev1.GetRequest) (*plusonev1.GetResponse, error) {
	var v violations
	checkText("key", req.Key, counter.MaxKeyBytes, &v)
	want := checkFreshness(req.MaxAge, req.MinAsOf, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	now := s.cache.now()
	if e := s.cache.lookup(req.Key, want, now); e != nil {
		s.metrics.hits.Inc()
		if e.hit(want.maxAge, now) {
			s.cache.refresh(e)
		}
		return &e.response, nil
	}
	s.metrics.misses.Inc()
	a := s.cache.read(ctx, []string{req.Key}, want)[0]
	switch {
	case a.err != nil:
		return nil, readError(ctx, a.err)
	case a.stale:
		return &plusonev1.GetResponse{Count: a.entry.staleCount()}, nil
	}
	return &a.entry.response, nil
}

// BatchGet reads many counters. It fails if one of them cannot be answered.
func (s *counterService) BatchGet(ctx context.Context, req *plusonev1.BatchGetRequest,
) (*plusonev1.BatchGetResponse, error) {
	var v violations
	checkKeys(req.Keys, &v)
	want := checkFreshness(req.MaxAge, req.MinAsOf, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	counts := make([]*plusonev1.Count, len(req.Keys))
	now := s.cache.now()
	var due []*entry
	var missing []int
	for i, key := range req.Keys {
		e := s.cache.lookup(key, want, now)
		if e == nil {
			missing = append(missing, i)
			continue
		}
		counts[i] = &e.count
		if e.hit(want.maxAge, now) {
			due = append(due, e)
		}
	}
	s.metrics.hits.Add(float64(len(req.Keys) - len(missing)))
	if len(due) > 0 {
		s.cache.refresh(due...)
	}
	if len(missing) > 0 {
		s.metrics.misses.Add(float64(len(missing)))
		if err := s.readMissing(ctx, req.Keys, missing, want, counts); err != nil {
			return nil, err
		}
	}
	return &plusonev1.BatchGetResponse{Counts: counts}, nil
}

// readMissing fills in the counts of the keys at the positions missing. A key may be there repeatedly.
func (s *counterService) readMissing(ctx context.Context, keys []string, missing []int, want freshness,
	counts []*plusonev1.Count,
) error {
	distinct := make([]string, 0, len(missing))
	positions := make(map[string]int, len(missing))
	for _, i := range missing {
		if _, ok := positions[keys[i]]; !ok {
			positions[keys[i]] = len(distinct)
			distinct = append(distinct, keys[i])
		}
	}
	answers := s.cache.read(ctx, distinct, want)
	for _, i := range missing {
		a := answers[positions[keys[i]]]
		switch {
		case a.err != nil:
			return readError(ctx, a.err)
		case a.stale:
			counts[i] = a.entry.staleCount()
		default:
			counts[i] = &a.entry.count
		}
	}
	return nil
}

// apply makes a change that has passed the checks.
func (s *counterService) apply(ctx context.Context, change counter.Change,
) (plusonev1.Outcome, *timestamppb.Timestamp, error) {
	within, _ := answerWithin(ctx, s.deadlines, s.config.RequestTimeout)
	defer within.Release()
	receipt, err := s.applyTraced(ctx, within, change)
	if change.Ticket != nil {
		if refused := s.gate.settle(ctx, change.Ticket, err); refused != nil {
			return 0, nil, refused
		}
	}
	if err != nil {
		return 0, nil, s.changeFailed(ctx, err, change)
	}
	asOf := timestamppb.New(receipt.AsOf)
	s.metrics.changes.acknowledged(receipt.Outcome)
	switch receipt.Outcome {
	case counter.Applied:
		return plusonev1.Outcome_OUTCOME_APPLIED, asOf, nil
	case counter.Duplicate:
		return plusonev1.Outcome_OUTCOME_DUPLICATE, asOf, nil
	case counter.AlreadyCounted:
		return plusonev1.Outcome_OUTCOME_ALREADY_COUNTED, asOf, nil
	default:
		return 0, nil, s.changeFailed(ctx, fmt.Errorf("the store answered outcome %d", receipt.Outcome), change)
	}
}

// applyTraced has the store make a change within the time that there is for it; ctx is the caller's.
func (s *counterService) applyTraced(ctx, within context.Context, change counter.Change) (counter.Receipt, error) {
	if s.config.Tracing == nil {
		return s.store.Apply(within, change)
	}
	asked := time.Now()
	receipt, err := s.store.Apply(within, change)
	if err == nil {
		traceChange(ctx, asked, receipt)
	}
	return receipt, err
}

// changeFailed maps the error of a change, and counts it.
func (s *counterService) changeFailed(ctx context.Context, err error, change counter.Change) error {
	failure := changeError(ctx, err, change)
	s.metrics.changes.refused(failure.status)
	return failure
}
