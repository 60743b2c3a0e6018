package main_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// Lists, once the ledger has what was liked, are in the order of the likes, newest first, page by page.
func TestListsOfLikes(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			args, _ := m.deploy(t)
			s := start(t, args...)
			c := dial(t, s)
			conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			must(t, err)
			defer func() { must(t, conn.Close()) }()
			reports := plusonev1.NewReportServiceClient(conn)
			ctx := within(t, patience)

			const key, actor, n = "likes/post:42", "user:0", 25
			var likers, liked []string
			for i := range n {
				likers = append(likers, fmt.Sprint("user:", i))
				liked = append(liked, fmt.Sprint("likes/post:", 42+i))
				_, err := c.Like(ctx, key, likers[i])
				must(t, err)
				_, err = c.Like(ctx, liked[i], actor)
				must(t, err)
			}
			// Who has thought better of it is not listed.
			_, err = c.Unlike(ctx, key, likers[7])
			must(t, err)
			_, err = c.Unlike(ctx, liked[7], actor)
			must(t, err)
			want := func(names []string) []string {
				names = slices.Delete(slices.Clone(names), 7, 8)
				slices.Reverse(names)
				return names
			}
			// Of a like that was repeated, the first call counts, so post:42 is the oldest of both lists.
			eventually(t, "the likers are listed", func() bool {
				return slices.Equal(listLikers(ctx, t, reports, key), want(likers))
			})
			eventually(t, "what an actor likes is listed", func() bool {
				return slices.Equal(listLiked(ctx, t, reports, actor), want(liked))
			})
			s.Terminate()
		})
	}
}

func listLikers(ctx context.Context, t *testing.T, reports plusonev1.ReportServiceClient, key string) (actors []string) {
	t.Helper()
	req := &plusonev1.ListLikersRequest{Key: key, PageSize: 10}
	for {
		resp, err := reports.ListLikers(ctx, req)
		must(t, err)
		for _, l := range resp.Likers {
			actors = append(actors, l.Actor)
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			return actors
		}
	}
}

func listLiked(ctx context.Context, t *testing.T, reports plusonev1.ReportServiceClient, actor string) (keys []string) {
	t.Helper()
	req := &plusonev1.ListLikedRequest{Actor: actor, PageSize: 10}
	for {
		resp, err := reports.ListLiked(ctx, req)
		must(t, err)
		for _, l := range resp.Liked {
			keys = append(keys, l.Key)
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			return keys
		}
	}
}
