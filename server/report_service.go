package server

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// reportService implements plusone.v1.ReportService on a ledger.
type reportService struct {
	plusonev1.UnimplementedReportServiceServer

	reports Reports
	config  Config
	metrics *metrics
}

// ListLikers lists who likes a key.
func (s *reportService) ListLikers(ctx context.Context, req *plusonev1.ListLikersRequest,
) (*plusonev1.ListLikersResponse, error) {
	var v violations
	checkText("key", req.Key, counter.MaxKeyBytes, &v)
	p := checkPage(likersOfKey, req.Key, req, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := answerContext(ctx, s.config.RequestTimeout)
	defer cancel()
	likes, err := s.reports.ListLikers(within, req.Key, p.after, p.size+1)
	if err != nil {
		return nil, readError(ctx, err)
	}
	likes, next := p.cut(likes)
	resp := &plusonev1.ListLikersResponse{Likers: make([]*plusonev1.Liker, len(likes)), NextPageToken: next}
	for i, like := range likes {
		resp.Likers[i] = &plusonev1.Liker{Actor: like.Actor, LikedAt: timestamppb.New(like.At)}
	}
	return resp, nil
}

// ListLiked lists what an actor likes.
func (s *reportService) ListLiked(ctx context.Context, req *plusonev1.ListLikedRequest,
) (*plusonev1.ListLikedResponse, error) {
	var v violations
	checkText("actor", req.Actor, counter.MaxActorBytes, &v)
	p := checkPage(likedByActor, req.Actor, req, &v)
	if err := s.metrics.refuse(&v); err != nil {
		return nil, err
	}
	within, cancel := answerContext(ctx, s.config.RequestTimeout)
	defer cancel()
	likes, err := s.liked(within, p, identity.FromContext(ctx))
	if err != nil {
		return nil, readError(ctx, err)
	}
	likes, next := p.cut(likes)
	resp := &plusonev1.ListLikedResponse{Liked: make([]*plusonev1.LikedKey, len(likes)), NextPageToken: next}
	for i, like := range likes {
		resp.Liked[i] = &plusonev1.LikedKey{Key: like.Key, LikedAt: timestamppb.New(like.At)}
	}
	return resp, nil
}

// liked returns the likes of a page, and one more if there is one, of what the caller may touch: a page is cut, and its
// token made, where the caller may see the like. It reads on until it has them, for as long as ctx lets it, and holds no more of
// them than a page and a read.
func (s *reportService) liked(ctx context.Context, p page, who *identity.Identity) ([]counter.Liked, error) {
	var page []counter.Liked
	for after, limit := p.after, p.size+1; ; limit = counter.MaxListed {
		likes, err := s.reports.ListLiked(ctx, p.of, after, limit)
		if err != nil {
			return nil, err
		}
		more := len(likes) == limit
		if more {
			after = p.list.cursor(likes[limit-1])
		}
		if who != nil {
			likes = slices.DeleteFunc(likes, func(l counter.Liked) bool { return !who.Touches(counter.Namespace(l.Key)) })
		}
		page = append(page, likes[:min(len(likes), p.size+1-len(page))]...)
		if !more || len(page) > p.size {
			return page, nil
		}
	}
}
