package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// FuzzLists asks for both lists of the same name. The token is as it comes, or one with a checksum that is right.
func FuzzLists(f *testing.F) {
	at := storeTime.UnixMicro()
	f.Add("k", int32(0), "", false, int64(0), "", uint16(0))
	f.Add("k", int32(1000), "", false, int64(0), "", uint16(1001))
	f.Add("k", int32(1), pageToken(likersOfKey, "k", counter.LikeCursor{At: storeTime, Name: "a"}), false, int64(0), "", uint16(2))
	f.Add("k", int32(1), pageToken(likedByActor, "k", counter.LikeCursor{At: storeTime, Name: "a"})+"\n", false, int64(0), "", uint16(2))
	f.Add("k", int32(2), "", true, at, "n", uint16(3))
	f.Add("k", int32(2), "", true, int64(-1), "n", uint16(3))
	f.Add("k", int32(2), "", true, int64(253_402_300_800e6), "n", uint16(3))
	f.Add("k", int32(2), "", true, at, strings.Repeat("n", 129), uint16(3))
	f.Add(" ", int32(-1), "!", false, int64(0), "", uint16(1))
	f.Add("k", int32(1001), "", true, at, "\xff", uint16(1))
	config, err := Config{}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	m := newMetrics()
	f.Fuzz(func(t *testing.T, of string, size int32, token string, made bool, at int64, name string, there uint16) {
		for _, l := range []list{likersOfKey, likedByActor} {
			reports := &longReports{there: int(there)}
			s := &reportService{reports: reports, config: config, metrics: m}
			if made {
				token = pageToken(l, of, counter.LikeCursor{At: time.UnixMicro(at), Name: name})
			}
			req, names, next, err := listPage(t, s, l, of, size, token)
			if !kept(t, req, err, broken(t, req, DefaultMaxDelta)) {
				if len(reports.asked) > 0 {
					t.Errorf("%v: the ledger was asked for %+v", req, reports.asked)
				}
				continue
			}
			if size == 0 {
				size = 100
			}
			q := reports.asked[0]
			if len(reports.asked) != 1 || q.list != l || q.of != of || q.limit != int(size)+1 {
				t.Errorf("%v: the ledger was asked for %+v", req, reports.asked)
			}
			if token == "" && q.after != (counter.LikeCursor{}) || token != "" && pageToken(l, of, q.after) != token {
				t.Errorf("%v: the ledger was asked for what comes after %+v", req, q.after)
			}
			if len(names) != min(int(size), int(there)) || (next != "") != (int(there) > int(size)) {
				t.Errorf("%v: %d likes and the token %q, where there are %d", req, len(names), next, there)
			}
			if next == "" {
				continue
			}
			if req, _, _, err = listPage(t, s, l, of, size, next); err != nil {
				t.Fatalf("%v: %v", req, err)
			}
			if after := reports.asked[1].after; after.Name != names[len(names)-1] || !after.At.Equal(reports.at(len(names)-1)) {
				t.Errorf("%v: the next page comes after %+v, not after the last of %q", req, after, names)
			}
		}
	})
}

// listPage asks for a page of one of the lists.
func listPage(t *testing.T, s *reportService, l list, of string, size int32, token string,
) (req proto.Message, names []string, next string, err error) {
	t.Helper()
	if l == likersOfKey {
		r := &plusonev1.ListLikersRequest{Key: of, PageSize: size, PageToken: token}
		resp, err := s.ListLikers(t.Context(), r)
		for _, like := range resp.GetLikers() {
			names = append(names, like.Actor)
		}
		return r, names, resp.GetNextPageToken(), err
	}
	r := &plusonev1.ListLikedRequest{Actor: of, PageSize: size, PageToken: token}
	resp, err := s.ListLiked(t.Context(), r)
	for _, like := range resp.GetLiked() {
		names = append(names, like.Key)
	}
	return r, names, resp.GetNextPageToken(), err
}

// longReports is a ledger in which so many likes are there behind any place of any list.
type longReports struct {
	there int
	asked []listQuery
}

type listQuery struct {
	list  list
	of    string
	after counter.LikeCursor
	limit int
}

func (r *longReports) at(i int) time.Time { return storeTime.Add(-time.Duration(i) * time.Microsecond) }

func (r *longReports) list(q listQuery) ([]counter.Liked, error) {
	r.asked = append(r.asked, q)
	likes := make([]counter.Liked, min(q.limit, r.there))
	for i := range likes {
		likes[i] = counter.Liked{Pair: counter.Pair{Key: fmt.Sprint("n", i), Actor: fmt.Sprint("n", i)}, At: r.at(i)}
	}
	return likes, nil
}

func (r *longReports) ListLikers(_ context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(listQuery{likersOfKey, key, after, limit})
}

func (r *longReports) ListLiked(_ context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error) {
	return r.list(listQuery{likedByActor, actor, after, limit})
}
