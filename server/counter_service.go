package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/deadline"
	"github.com/plusone-dev/plusone/internal/identity"
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

	increments changeAnswers[incrementFacts]
	likes      changeAnswers[likeFacts]
}

// register registers the service. What is called most answers with what is encoded already, and so has handlers of its own: those
// that are generated answer with messages.
func (s *counterService) register(r grpc.ServiceRegistrar) {
	desc := plusonev1.CounterService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		switch m := &desc.Methods[i]; m.MethodName {
		case "Increment":
			m.Handler = encodedHandler(s.increment)
		case "Like":
			m.Handler = encodedHandler(s.like)
		case "Unlike":
			m.Handler = encodedHandler(s.unlike)
		case "Get":
			m.Handler = encodedHandler(s.get)
		case "BatchGet":
			m.Handler = encodedHandler(s.batchGet)
		}
	}
	r.RegisterService(&desc, s)
}

// encodedHandler is the handler of a method whose answers are of a type that the codec knows. Only calls of AdminService may have
// an interceptor.
func encodedHandler[Request, Answer any](method func(context.Context, *Request) (Answer, error)) methodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		req := new(Request)
		if err := decode(req); err != nil {
			return nil, err
		}
		return method(ctx, req)
	}
}

// increment changes one counter.
func (s *counterService) increment(ctx context.Context, req *plusonev1.IncrementRequest) (*answer, error) {
	var v violations
	change := checkIncrement(req, s.config.MaxDelta, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	if err := s.admit(ctx, &change, methodIncrement); err != nil {
		return nil, err
	}
	outcome, asOf, err := s.apply(ctx, &change)
	if err != nil {
		return nil, err
	}
	a, err := s.increments.of(incrementFacts{outcome, asOf})
	if err != nil {
		return nil, s.changeFailed(ctx, err, &change)
	}
	return a, nil
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
	outcome, asOf, err := s.apply(ctx, &change)
	if err != nil {
		return nil, err
	}
	return &plusonev1.BatchIncrementResponse{Outcome: outcome, AsOf: timestamppb.New(asOf)}, nil
}

// admit completes a change of one key, and lets it in: who acts for one actor only need not name him. That is so without a gate too:
// the actor is part of what is compared when a change is tried again, by when another server may have one.
func (s *counterService) admit(ctx context.Context, change *counter.Change, by string) error {
	if change.Actor == "" && s.config.Authenticator != nil {
		if who := identity.FromContext(ctx); who != nil {
			change.Actor = who.Actor
		}
	}
	return s.gate.change(ctx, change, by)
}

// get reads one counter.
func (s *counterService) get(ctx context.Context, req *plusonev1.GetRequest) (*answer, error) {
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
		return &e.answer, nil
	}
	s.metrics.misses.Inc()
	a, err := s.cache.read(ctx, []string{req.Key}, want)[0].answer()
	if err != nil {
		return nil, readError(ctx, err)
	}
	return a, nil
}

// batchGet reads many counters. It fails if one of them cannot be answered.
func (s *counterService) batchGet(ctx context.Context, req *plusonev1.BatchGetRequest) (answers, error) {
	var v violations
	checkKeys(req.Keys, &v)
	want := checkFreshness(req.MaxAge, req.MinAsOf, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	counts := make(answers, len(req.Keys))
	now := s.cache.now()
	var due []*entry
	var missing []int
	for i, key := range req.Keys {
		e := s.cache.lookup(key, want, now)
		if e == nil {
			missing = append(missing, i)
			continue
		}
		counts[i] = &e.answer
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
	return counts, nil
}

// readMissing fills in the counts of the keys at the positions missing. A key may be there repeatedly.
func (s *counterService) readMissing(ctx context.Context, keys []string, missing []int, want freshness,
	counts answers,
) error {
	distinct := make([]string, 0, len(missing))
	positions := make(map[string]int, len(missing))
	for _, i := range missing {
		if _, ok := positions[keys[i]]; !ok {
			positions[keys[i]] = len(distinct)
			distinct = append(distinct, keys[i])
		}
	}
	results := s.cache.read(ctx, distinct, want)
	for _, i := range missing {
		var err error
		if counts[i], err = results[positions[keys[i]]].answer(); err != nil {
			return readError(ctx, err)
		}
	}
	return nil
}

// apply makes a change that has passed the checks. It returns the moment from which fresh reads show it.
func (s *counterService) apply(ctx context.Context, change *counter.Change) (plusonev1.Outcome, time.Time, error) {
	within := s.deadlines.Within(ctx, s.config.RequestTimeout)
	receipt, err := s.store.Apply(within, *change)
	within.Release()
	if change.Ticket != nil {
		if refused := s.gate.settle(ctx, change.Ticket, err); refused != nil {
			return 0, time.Time{}, refused
		}
	}
	if err != nil {
		return 0, time.Time{}, s.changeFailed(ctx, err, change)
	}
	s.metrics.changes.acknowledged(receipt.Outcome)
	switch receipt.Outcome {
	case counter.Applied:
		return plusonev1.Outcome_OUTCOME_APPLIED, receipt.AsOf, nil
	case counter.Duplicate:
		return plusonev1.Outcome_OUTCOME_DUPLICATE, receipt.AsOf, nil
	case counter.AlreadyCounted:
		return plusonev1.Outcome_OUTCOME_ALREADY_COUNTED, receipt.AsOf, nil
	default:
		return 0, time.Time{}, s.changeFailed(ctx, fmt.Errorf("the store answered outcome %d", receipt.Outcome), change)
	}
}

// changeFailed maps the error of a change, and counts it.
func (s *counterService) changeFailed(ctx context.Context, err error, change *counter.Change) error {
	failure := changeError(ctx, err, change)
	s.metrics.changes.refused(failure.status)
	return failure
}
