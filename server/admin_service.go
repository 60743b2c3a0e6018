package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// adminService implements plusone.v1.AdminService.
type adminService struct {
	plusonev1.UnimplementedAdminServiceServer

	store   Store
	admin   *Admin
	reports Reports
	cache   *countCache
	metrics *metrics
	// stopping ends when the server stops, and with it the work of calls.
	stopping context.Context //nolint:containedctx // it is that of the server
	stop     context.CancelFunc
}

func newAdminService(store Store, reports Reports, cache *countCache, config Config, m *metrics) *adminService {
	s := &adminService{store: store, admin: config.Admin, reports: reports, cache: cache, metrics: m}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s
}

// within returns the context of a call's work.
func (s *adminService) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := answerContext(ctx, adminLimit)
	stop := context.AfterFunc(s.stopping, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// outOfTime reports whether work failed because its time was over, though its caller is still there.
func outOfTime(ctx, within context.Context, err error) bool {
	return err != nil && within.Err() != nil && ctx.Err() == nil
}

// Delete resets a counter and takes its likes back. The last reset has done it: whoever finds that repeated need do
// nothing. The one before makes room for unlikes where the total is at the edge of int64, of which the last takes back
// what is left.
func (s *adminService) Delete(ctx context.Context, req *plusonev1.DeleteRequest) (*plusonev1.DeleteResponse, error) {
	var v violations
	checkText("key", req.Key, counter.MaxKeyBytes, &v)
	id := checkRequiredID(req.RequestId, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := s.within(ctx)
	defer cancel()
	reset := func(part string) counter.Change {
		return counter.Change{Entries: []counter.Entry{{Key: req.Key}}, RequestID: id.Derive(part), Reset: true}
	}
	last := reset("deleted")
	t := &takeBack{reports: s.reports, admin: s.admin, of: counter.Pair{Key: req.Key}}
	repeated, err := s.admin.Store.Repeated(within, last)
	if err == nil && !repeated {
		if _, err = s.store.Apply(within, reset("delete")); err == nil {
			err = t.run(within)
		}
	}
	var receipt counter.Receipt
	if err == nil {
		receipt, err = s.store.Apply(within, last)
	}
	resp := &plusonev1.DeleteResponse{LikesRemoved: int64(t.likes)}
	switch {
	case outOfTime(ctx, within, err):
		return resp, nil
	case err != nil:
		return nil, changeError(ctx, err, &last)
	}
	resp.Done, resp.Duplicate = true, receipt.Outcome == counter.Duplicate
	resp.AsOf = timestamppb.New(latest(receipt.AsOf, t.asOf))
	// This server's cache shows it at once.
	s.cache.obtain(within, []string{req.Key}, freshness{})
	return resp, nil
}

// ForgetActor takes back an actor's likes and deletes what the ledger has with its name.
func (s *adminService) ForgetActor(ctx context.Context, req *plusonev1.ForgetActorRequest,
) (*plusonev1.ForgetActorResponse, error) {
	var v violations
	checkText("actor", req.Actor, counter.MaxActorBytes, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := s.within(ctx)
	defer cancel()
	t := &takeBack{reports: s.reports, admin: s.admin, of: counter.Pair{Actor: req.Actor}}
	err := t.run(within)
	if err == nil {
		err = t.forget(within, func(ctx context.Context) (int, error) {
			return s.admin.Ledger.ForgetClaims(ctx, req.Actor, forgetRows)
		})
	}
	if err != nil && !outOfTime(ctx, within, err) {
		// A like is a state: to take it back again is safe.
		return nil, changeError(ctx, err, &counter.Change{Like: counter.SetUnliked})
	}
	resp := &plusonev1.ForgetActorResponse{Done: err == nil, LikesRemoved: int64(t.likes), RowsDeleted: int64(t.rows)}
	if !t.asOf.IsZero() {
		resp.AsOf = timestamppb.New(t.asOf)
	}
	return resp, nil
}

// Import adds counts and sets likes. Likes come first, as they may be set again, and a mark of the chunk comes last:
// whoever finds that repeated need do nothing.
func (s *adminService) Import(ctx context.Context, req *plusonev1.ImportRequest) (*plusonev1.ImportResponse, error) {
	var v violations
	chunk := checkImport(req, time.Now(), &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := s.within(ctx)
	defer cancel()
	var added int
	var asOf time.Time
	repeated, err := s.admin.Store.Repeated(within, chunk.done)
	if err == nil && !repeated {
		added, asOf, err = s.apply(within, chunk)
	}
	var receipt counter.Receipt
	if err == nil {
		receipt, err = s.store.Apply(within, chunk.done)
	}
	if err != nil {
		return nil, changeError(ctx, err, &chunk.done)
	}
	resp := &plusonev1.ImportResponse{
		Outcome: plusonev1.Outcome_OUTCOME_APPLIED, LikesAdded: int64(added), AsOf: timestamppb.New(latest(receipt.AsOf, asOf)),
	}
	if receipt.Outcome == counter.Duplicate {
		resp.Outcome = plusonev1.Outcome_OUTCOME_DUPLICATE
	}
	return resp, nil
}

// apply sets the likes of a chunk and adds its totals.
func (s *adminService) apply(ctx context.Context, chunk importChunk) (added int, asOf time.Time, err error) {
	if len(chunk.likes) > 0 {
		if added, asOf, err = s.admin.Store.SetLikes(ctx, chunk.likes); err != nil {
			return added, asOf, err
		}
	}
	if len(chunk.totals.Entries) == 0 {
		return added, asOf, nil
	}
	receipt, err := s.store.Apply(ctx, chunk.totals)
	return added, latest(receipt.AsOf, asOf), err
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
