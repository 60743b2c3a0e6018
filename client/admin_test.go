package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/client"
)

// fakeAdmin needs three calls for each task, of which the second fails.
type fakeAdmin struct {
	plusonev1.UnimplementedAdminServiceServer

	mu      sync.Mutex
	calls   int
	ids     []string
	imports []*plusonev1.ImportRequest
}

func (a *fakeAdmin) call(id string) (done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	a.ids = append(a.ids, id)
	if a.calls%3 == 2 {
		return false, status.Error(codes.Unavailable, "later")
	}
	return a.calls%3 == 0, nil
}

func (a *fakeAdmin) Delete(_ context.Context, r *plusonev1.DeleteRequest) (*plusonev1.DeleteResponse, error) {
	done, err := a.call(r.RequestId)
	return &plusonev1.DeleteResponse{Done: done, LikesRemoved: 5, AsOf: timestamppb.New(epoch)}, err
}

func (a *fakeAdmin) ForgetActor(_ context.Context, r *plusonev1.ForgetActorRequest) (*plusonev1.ForgetActorResponse, error) {
	done, err := a.call(r.Actor)
	return &plusonev1.ForgetActorResponse{Done: done, LikesRemoved: 2, RowsDeleted: 3}, err
}

func (a *fakeAdmin) Import(_ context.Context, r *plusonev1.ImportRequest) (*plusonev1.ImportResponse, error) {
	if _, err := a.call(r.RequestId); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.imports = append(a.imports, r)
	return &plusonev1.ImportResponse{Outcome: plusonev1.Outcome_OUTCOME_APPLIED}, nil
}

func serveAdmin(t *testing.T) (*fakeAdmin, *client.Client) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin, server := &fakeAdmin{}, grpc.NewServer(grpc.MaxRecvMsgSize(8<<20))
	plusonev1.RegisterAdminServiceServer(server, admin)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	c, err := client.Dial(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return admin, c
}

// Calls are repeated until they are done, with one request id, and what they did is added up.
func TestAdminCallsAreRepeated(t *testing.T) {
	t.Parallel()
	admin, c := serveAdmin(t)
	deleted, err := c.DeleteCounter(t.Context(), "views/1", "")
	if err != nil || deleted.LikesRemoved != 10 || !deleted.AsOf.Equal(epoch) || deleted.Duplicate {
		t.Errorf("DeleteCounter = %+v, %v", deleted, err)
	}
	if len(admin.ids) != 3 || admin.ids[0] == "" || admin.ids[0] != admin.ids[2] {
		t.Errorf("request ids are %q", admin.ids)
	}
	forgotten, err := c.ForgetActor(t.Context(), "ada")
	if err != nil || forgotten != (client.Forgotten{LikesRemoved: 4, RowsDeleted: 6}) {
		t.Errorf("ForgetActor = %+v, %v", forgotten, err)
	}
	if _, err := c.DeleteCounter(t.Context(), "\xff", ""); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a key that is not UTF-8: %v", err)
	}
}

// An import that is resumed sends the chunks that are left, with the ids that they had.
func TestImportIsResumed(t *testing.T) {
	t.Parallel()
	admin, c := serveAdmin(t)
	items := func(yield func(client.ImportItem) bool) {
		for i := range 12_000 {
			item := client.ImportItem{Key: fmt.Sprint("views/", i), Delta: 1}
			if i%2 == 1 {
				item = client.ImportItem{Key: "posts/1", Actor: fmt.Sprint("actor-", i), Since: epoch.Add(time.Duration(i))}
			}
			if !yield(item) {
				return
			}
		}
	}
	stop := errors.New("stop")
	err := c.Import(t.Context(), "old-system", items, 0, func(chunks int) error {
		if chunks == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatalf("Import = %v", err)
	}
	last := 0
	if err := c.Import(t.Context(), "old-system", items, 1, func(chunks int) error { last = chunks; return nil }); err != nil || last != 3 {
		t.Fatalf("Import = %v, after %d chunks", err, last)
	}
	admin.mu.Lock()
	defer admin.mu.Unlock()
	var ids []string
	for _, chunk := range admin.imports {
		ids = append(ids, chunk.RequestId)
		if n := len(chunk.Totals) + len(chunk.Likes); n != 5000 && chunk.RequestId != "old-system/3" {
			t.Errorf("chunk %s has %d items", chunk.RequestId, n)
		}
	}
	if want := []string{"old-system/1", "old-system/2", "old-system/2", "old-system/3"}; !slices.Equal(ids, want) {
		t.Errorf("chunks are %q, want %q", ids, want)
	}
	if like := admin.imports[3].Likes[0]; like.Actor != "actor-10001" || !like.LikedAt.AsTime().Equal(epoch.Add(10_001)) {
		t.Errorf("the first like of the last chunk is %v", like)
	}
}
