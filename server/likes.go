package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// maxCountWait is how long the answer to a like waits for the count. A healthy store takes far less, and a caller
// whose like is safe must not wait for a number that he can do without.
const maxCountWait = 500 * time.Millisecond

// Like makes an actor like a key.
func (s *counterService) Like(ctx context.Context, req *plusonev1.LikeRequest) (*plusonev1.LikeResponse, error) {
	a, err := s.setLike(ctx, req, counter.SetLiked, methodLike)
	if err != nil {
		return nil, err
	}
	return &plusonev1.LikeResponse{Changed: a.changed, Count: a.count, AsOf: a.asOf, Provisional: a.provisional}, nil
}

// Unlike takes an actor's like of a key back.
func (s *counterService) Unlike(ctx context.Context, req *plusonev1.UnlikeRequest) (*plusonev1.UnlikeResponse, error) {
	a, err := s.setLike(ctx, req, counter.SetUnliked, methodUnlike)
	if err != nil {
		return nil, err
	}
	return &plusonev1.UnlikeResponse{Changed: a.changed, Count: a.count, AsOf: a.asOf, Provisional: a.provisional}, nil
}

// likeAnswer is what the answers to a Like and an Unlike have in common.
type likeAnswer struct {
	changed     bool
	count       *int64 // nil if it cannot be told now
	asOf        *timestamppb.Timestamp
	provisional bool
}

// setLike sets a like, and reads the count unless the store did so along with it. The like is acknowledged whatever becomes
// of that read.
func (s *counterService) setLike(ctx context.Context, req likeRequest, action counter.LikeAction, by string) (likeAnswer, error) {
	var v violations
	change := checkLike(req, action, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return likeAnswer{}, err
	}
	if err := s.gate.change(ctx, &change, by); err != nil {
		return likeAnswer{}, err
	}
	change.WantCount = true
	// The change and the read share the time, so that after both there is as much left to answer in.
	within, until := answerWithin(ctx, s.deadlines, s.config.RequestTimeout)
	defer within.Release()
	receipt, err := s.applyTraced(ctx, within, change)
	if err == nil && receipt.Outcome != counter.Applied && receipt.Outcome != counter.Duplicate {
		err = fmt.Errorf("the store answered outcome %d to a like", receipt.Outcome)
	}
	if err != nil {
		return likeAnswer{}, s.changeFailed(ctx, err, change)
	}
	s.metrics.changes.acknowledged(receipt.Outcome)
	a := likeAnswer{changed: receipt.Changed, provisional: receipt.Provisional}
	asOf, countedAt := receipt.AsOf, time.Time{}
	if c := receipt.Count; c != nil {
		s.cache.keep(c, receipt.Batch.Sent)
		a.count, countedAt = &c.Value, c.AsOf
	} else if e := s.countAfter(ctx, until, change.Entries[0].Key); e != nil {
		a.count, countedAt = &e.count.Value, e.count.AsOf
	}
	// A caller who passes the later moment on as min_as_of never reads an older count than this one.
	if countedAt.After(asOf) {
		asOf = countedAt
	}
	a.asOf = timestamppb.New(asOf)
	return a, nil
}

// countAfter reads a count that has all that was acknowledged before the call, and leaves it in the cache. It
// returns nil if that cannot be told soon: neither a last known value nor a guess would be this like's count.
func (s *counterService) countAfter(ctx context.Context, until time.Time, key string) *entry {
	now := time.Now()
	if ctx.Err() != nil || !now.Before(until) {
		return nil // nobody could wait for the load
	}
	if soon := now.Add(maxCountWait); soon.Before(until) {
		until = soon
	}
	within := s.deadlines.With(ctx, until)
	defer within.Release()
	return s.cache.obtain(within, []string{key}, freshness{})[0].entry
}

// BatchGetLikes tells which keys an actor likes.
func (s *counterService) BatchGetLikes(ctx context.Context, req *plusonev1.BatchGetLikesRequest,
) (*plusonev1.BatchGetLikesResponse, error) {
	var v violations
	checkText("actor", req.Actor, counter.MaxActorBytes, &v)
	checkKeys(req.Keys, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := answerContext(ctx, s.config.RequestTimeout)
	defer cancel()
	states, err := s.store.Likes(within, req.Actor, req.Keys)
	if err == nil && len(states) != len(req.Keys) {
		err = fmt.Errorf("the store answered %d of %d likes", len(states), len(req.Keys))
	}
	if err != nil {
		return nil, readError(ctx, err)
	}
	likes := make([]*plusonev1.LikeState, len(states))
	for i, state := range states {
		likes[i] = &plusonev1.LikeState{Key: req.Keys[i], Liked: state.Liked}
		if state.Liked {
			likes[i].LikedAt = timestamppb.New(state.At)
		}
	}
	return &plusonev1.BatchGetLikesResponse{Likes: likes}, nil
}
