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

// like makes an actor like a key.
func (s *counterService) like(ctx context.Context, req *plusonev1.LikeRequest) (*answer, error) {
	return s.setLike(ctx, req, counter.SetLiked, methodLike)
}

// unlike takes an actor's like of a key back.
func (s *counterService) unlike(ctx context.Context, req *plusonev1.UnlikeRequest) (*answer, error) {
	return s.setLike(ctx, req, counter.SetUnliked, methodUnlike)
}

// setLike sets a like, and reads the count unless the store did so along with it. The like is acknowledged whatever becomes
// of that read.
func (s *counterService) setLike(ctx context.Context, req likeRequest, action counter.LikeAction, by string) (*answer, error) {
	var v violations
	change := checkLike(req, action, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	if err := s.admit(ctx, &change, by); err != nil {
		return nil, err
	}
	change.WantCount = true
	// The change and the read share the time, so that after both there is as much left to answer in.
	within := s.deadlines.Within(ctx, s.config.RequestTimeout)
	defer within.Release()
	until, _ := within.Deadline()
	receipt, err := s.store.Apply(within, change)
	if err == nil && receipt.Outcome != counter.Applied && receipt.Outcome != counter.Duplicate {
		err = fmt.Errorf("the store answered outcome %d to a like", receipt.Outcome)
	}
	if err != nil {
		return nil, s.changeFailed(ctx, err, &change)
	}
	s.metrics.changes.acknowledged(receipt.Outcome)
	f := likeFacts{changed: receipt.Changed, asOf: receipt.AsOf, provisional: receipt.Provisional}
	count := receipt.Count
	if count != nil {
		s.cache.keep(count, receipt.Batch.Sent)
	} else if e := s.countAfter(ctx, until, change.Entries[0].Key); e != nil {
		count = &e.count
	}
	if count != nil {
		f.counted, f.count = true, count.Value
		// A caller who passes the later moment on as min_as_of never reads an older count than this one.
		if count.AsOf.After(f.asOf) {
			f.asOf = count.AsOf
		}
	}
	a, err := s.likes.of(f)
	if err != nil {
		return nil, s.changeFailed(ctx, err, &change)
	}
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
