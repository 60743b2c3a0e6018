package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// scriptedAdmin has taken over all likes at once, unless it is never settled, and has nothing to forget.
type scriptedAdmin struct {
	repeated bool
	never    bool
	// onSettled, if it is not nil, is called by Settled.
	onSettled func()

	mu    sync.Mutex
	likes []counter.DatedLike
}

func (a *scriptedAdmin) Repeated(context.Context, counter.Change) (bool, error) {
	return a.repeated, nil
}

func (a *scriptedAdmin) SetLikes(_ context.Context, likes []counter.DatedLike) (int, time.Time, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.likes = append(a.likes, likes...)
	return len(likes), storeTime.Add(time.Second), nil
}

func (a *scriptedAdmin) Mark(context.Context) (counter.Mark, error) {
	return counter.Mark{Now: storeTime, Windows: []int64{1}}, nil
}

func (a *scriptedAdmin) Settled(context.Context, counter.Mark) (bool, error) {
	if a.onSettled != nil {
		a.onSettled()
	}
	return !a.never, nil
}

func (a *scriptedAdmin) ForgetLikes(context.Context, counter.Pair, time.Time, int) (int, error) {
	return 0, nil
}

func (a *scriptedAdmin) ForgetClaims(context.Context, string, int) (int, error) { return 0, nil }

func startAdmin(t *testing.T, store Store, reports Reports, admin *scriptedAdmin) (*running, plusonev1.AdminServiceClient) {
	t.Helper()
	r := startWith(t, store, reports, Config{Admin: &Admin{Store: admin, Ledger: admin}})
	return r, plusonev1.NewAdminServiceClient(r.conn)
}

// The largest request that the contract allows must get through, and little more.
func TestLargestImportPasses(t *testing.T) {
	t.Parallel()
	admin := &scriptedAdmin{}
	_, c := startAdmin(t, &scriptedStore{}, &scriptedReports{}, admin)
	req := &plusonev1.ImportRequest{RequestId: strings.Repeat("r", 128)}
	for i := range counter.MaxEntries {
		req.Likes = append(req.Likes, &plusonev1.ImportLike{
			Key: fmt.Sprintf("%0256d", i), Actor: fmt.Sprintf("%0128d", i),
			LikedAt: &timestamppb.Timestamp{Seconds: storeTime.Unix() - 1e8, Nanos: 999_999_999},
		})
	}
	if size := proto.Size(req); size > maxMessageBytes || size < maxMessageBytes-8<<10 {
		t.Errorf("the largest import is %d bytes, the limit %d", size, maxMessageBytes)
	}
	if _, err := c.Import(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n := len(admin.likes); n != counter.MaxEntries {
		t.Errorf("the store saw %d likes", n)
	}
	req.RequestId = strings.Repeat("r", 8<<10)
	if _, err := c.Import(t.Context(), req); failureOf(t, err).code != codes.ResourceExhausted {
		t.Errorf("a larger message: %v", err)
	}
}

func TestImportChecks(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	_, c := startAdmin(t, store, &scriptedReports{}, &scriptedAdmin{})
	total := func(key string, delta int64) *plusonev1.ImportTotal {
		return &plusonev1.ImportTotal{Key: key, Delta: delta}
	}
	like := func(key, actor string, at *timestamppb.Timestamp) *plusonev1.ImportLike {
		return &plusonev1.ImportLike{Key: key, Actor: actor, LikedAt: at}
	}
	many := make([]*plusonev1.ImportTotal, counter.MaxEntries)
	for i := range many {
		many[i] = total("k", 1)
	}
	for name, tc := range map[string]struct {
		req    *plusonev1.ImportRequest
		fields []string // nil: it passes
	}{
		"largest delta": {&plusonev1.ImportRequest{RequestId: "1", Totals: []*plusonev1.ImportTotal{total("a", -1<<63)}}, nil},
		"no id":         {&plusonev1.ImportRequest{Totals: many[:1]}, []string{"request_id"}},
		"nothing":       {&plusonev1.ImportRequest{RequestId: "1"}, []string{"totals"}},
		"too many": {
			&plusonev1.ImportRequest{RequestId: "1", Totals: many, Likes: []*plusonev1.ImportLike{like("a", "b", nil)}},
			[]string{"totals"},
		},
		"totals": {
			&plusonev1.ImportRequest{RequestId: "1", Totals: []*plusonev1.ImportTotal{total("a", 1), total("", 1), total("b", 0), nil}},
			[]string{"totals[1].key", "totals[2].delta", "totals[3].key", "totals[3].delta"},
		},
		"overflow": {
			&plusonev1.ImportRequest{RequestId: "1", Totals: []*plusonev1.ImportTotal{total("a", 1<<63-1), total("a", 1)}},
			[]string{"totals[1].delta"},
		},
		"likes": {
			&plusonev1.ImportRequest{RequestId: "1", Likes: []*plusonev1.ImportLike{
				like("a", "b", nil), like("a b", "b", nil), like("a", "", nil), like("a", "b", nil),
				like("c", "b", timestamppb.New(time.Now().Add(time.Hour))), like("d", "b", &timestamppb.Timestamp{Seconds: -5}),
				like("e", "b", &timestamppb.Timestamp{Nanos: -1}),
			}},
			[]string{"likes[1].key", "likes[2].actor", "likes[3]", "likes[4].liked_at", "likes[5].liked_at", "likes[6].liked_at"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Import(t.Context(), tc.req)
			if tc.fields != nil {
				wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: tc.fields})
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// A repeated call does nothing but ask for the receipt, and a call that runs out of time, or whose server stops, says
// that it is not done.
func TestAdminCallsEnd(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	store.apply = func(context.Context, counter.Change) (counter.Receipt, error) {
		return counter.Receipt{Outcome: counter.Duplicate, AsOf: storeTime}, nil
	}
	reports := &scriptedReports{likes: []counter.Liked{{Pair: counter.Pair{Key: "k", Actor: "a"}, At: storeTime}}}
	admin := &scriptedAdmin{repeated: true}
	_, c := startAdmin(t, store, reports, admin)
	resp, err := c.Delete(t.Context(), &plusonev1.DeleteRequest{Key: "k", RequestId: "1"})
	if err != nil || !resp.Done || !resp.Duplicate || len(store.changes) != 1 || len(admin.likes) != 0 {
		t.Errorf("a repeated call: %v, %v, %d changes, %d likes", resp, err, len(store.changes), len(admin.likes))
	}

	admin = &scriptedAdmin{never: true}
	r, c := startAdmin(t, &scriptedStore{}, reports, admin)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	resp, err = c.Delete(short, &plusonev1.DeleteRequest{Key: "k", RequestId: "1"})
	if err != nil || resp.Done || resp.LikesRemoved != 1 {
		t.Errorf("a call without the time: %v, %v", resp, err)
	}
	if like := admin.likes[0]; like.Liked || like.Micros != storeTime.UnixMicro()+1 {
		t.Errorf("the like was set to %+v", like)
	}
	asked := make(chan struct{})
	admin.onSettled = sync.OnceFunc(func() { close(asked) })
	answered := make(chan error, 1)
	go func() {
		resp, err := c.ForgetActor(context.WithoutCancel(t.Context()), &plusonev1.ForgetActorRequest{Actor: "a"})
		if err == nil && resp.Done {
			err = fmt.Errorf("it is done: %v", resp)
		}
		answered <- err
	}()
	<-asked
	if err := r.server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
