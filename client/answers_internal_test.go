package client

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// sameAnswer is a connection to a server that answers every call with the same bytes, or the same error.
type sameAnswer struct {
	body []byte
	err  error
}

func (a *sameAnswer) Invoke(_ context.Context, _ string, _, reply any, opts ...grpc.CallOption) error {
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			p.PeerAddr.Addr = &net.TCPAddr{} // the request was sent
		}
	}
	if a.err != nil {
		return a.err
	}
	message, ok := reply.(proto.Message)
	if !ok {
		return status.Error(codes.Internal, "answer to no message")
	}
	if err := proto.Unmarshal(a.body, message); err != nil {
		return status.Error(codes.Internal, "grpc: failed to unmarshal the received message")
	}
	return nil
}

func (a *sameAnswer) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams are not answered")
}

func (a *sameAnswer) client() *Client {
	return &Client{rpc: plusonev1.NewCounterServiceClient(a), retry: retrier{
		timeout: DefaultTimeout, attemptTimeout: DefaultAttemptTimeout, idLifetime: DefaultDedupeWindow, closed: make(chan struct{}),
	}}
}

func addAnswer(f *testing.F, m proto.Message) {
	f.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
}

// FuzzAnswers has a server answer every call with whatever bytes: an acknowledgement is one that the server gave, and
// a count or like is that of the key asked for. Any other answer fails, and leaves a change in doubt.
func FuzzAnswers(f *testing.F) {
	now := timestamppb.New(time.Unix(1_700_000_000, 5000))
	one := int64(1)
	for _, m := range []proto.Message{
		&plusonev1.IncrementResponse{},
		&plusonev1.IncrementResponse{Outcome: plusonev1.Outcome_OUTCOME_APPLIED, AsOf: now},
		&plusonev1.IncrementResponse{Outcome: plusonev1.Outcome_OUTCOME_DUPLICATE, AsOf: now},
		&plusonev1.IncrementResponse{Outcome: plusonev1.Outcome_OUTCOME_ALREADY_COUNTED, AsOf: now},
		&plusonev1.IncrementResponse{Outcome: 4, AsOf: now},
		&plusonev1.GetResponse{Count: &plusonev1.Count{Key: "a", Count: 7, Likes: 3, AsOf: now, Stale: true}},
		&plusonev1.GetResponse{Count: &plusonev1.Count{Key: "b", Count: 7}},
		&plusonev1.BatchGetResponse{Counts: []*plusonev1.Count{{Key: "a", Count: -1, AsOf: now}, {Key: "b"}}},
		&plusonev1.BatchGetResponse{Counts: []*plusonev1.Count{{Key: "b"}, {Key: "a"}}},
		&plusonev1.LikeResponse{Changed: true, Count: &one, AsOf: now, Provisional: true},
		&plusonev1.LikeResponse{Changed: true, Count: &one},
		&plusonev1.BatchGetLikesResponse{Likes: []*plusonev1.LikeState{{Key: "a", Liked: true, LikedAt: now}, {Key: "b", LikedAt: now}}},
		&plusonev1.BatchGetLikesResponse{Likes: []*plusonev1.LikeState{{Key: "a", Liked: true}}},
	} {
		addAnswer(f, m)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := (&sameAnswer{body: body}).client()
		ctx := t.Context()

		change := decode(body, &plusonev1.IncrementResponse{}) // that to a batch is the same
		own, err := c.Increment(ctx, "a", 1)
		checkReceipt(t, own, err, change, true)
		named, err := c.Increment(ctx, "a", 1, WithRequestID("r"))
		checkReceipt(t, named, err, change, false)
		batch, err := c.BatchIncrement(ctx, []Entry{{Key: "a", Delta: 1}}, WithRequestID("r"))
		checkReceipt(t, batch, err, change, false)

		got, err := c.Get(ctx, "a")
		checkCounts(t, []Count{got}, err, []*plusonev1.Count{decode(body, &plusonev1.GetResponse{}).GetCount()}, []string{"a"})
		all, err := c.BatchGet(ctx, []string{"a", "b"})
		checkCounts(t, all, err, decode(body, &plusonev1.BatchGetResponse{}).GetCounts(), []string{"a", "b"})

		like := decode(body, &plusonev1.LikeResponse{}) // that to an Unlike is the same
		for _, set := range []func(context.Context, string, string, ...LikeOption) (LikeReceipt, error){c.Like, c.Unlike} {
			r, err := set(ctx, "a", "x")
			if like.GetAsOf() == nil {
				wantFailed(t, err, true)
			} else if err != nil || r.Changed != like.Changed || r.Count != like.GetCount() || r.CountKnown != (like.Count != nil) ||
				r.Provisional != like.Provisional || !r.AsOf.Equal(like.AsOf.AsTime()) {
				t.Errorf("%v was read as %+v, %v", like, r, err)
			}
		}
		liked, err := c.Liked(ctx, "x", []string{"a", "b"})
		checkLiked(t, liked, err, decode(body, &plusonev1.BatchGetLikesResponse{}).GetLikes(), []string{"a", "b"})
	})
}

// decode returns m as it is in the body, or nil.
func decode[M proto.Message](body []byte, m M) M {
	if proto.Unmarshal(body, m) != nil {
		var none M
		return none
	}
	return m
}

// wantFailed wants a call to have failed for good, and to be in doubt if it is a change.
func wantFailed(t *testing.T, err error, change bool) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != codes.Internal || e.InDoubt != change || errors.Is(err, ErrInDoubt) != change {
		t.Errorf("the answer was taken, or failed with %v", err)
	}
}

func checkReceipt(t *testing.T, r Receipt, err error, answer *plusonev1.IncrementResponse, ownID bool) {
	t.Helper()
	want := map[plusonev1.Outcome]Outcome{1: Applied, 2: Duplicate, 3: AlreadyCounted}[answer.GetOutcome()]
	if want == Duplicate && ownID {
		want = Applied
	}
	switch {
	case want == 0:
		wantFailed(t, err, true)
	case err != nil || r.Outcome != want || !r.AsOf.Equal(moment(answer.AsOf)):
		t.Errorf("%v was read as %+v, %v", answer, r, err)
	}
}

func checkCounts(t *testing.T, got []Count, err error, answers []*plusonev1.Count, keys []string) {
	t.Helper()
	if !slices.EqualFunc(answers, keys, func(c *plusonev1.Count, key string) bool { return c != nil && c.Key == key }) {
		wantFailed(t, err, false)
		return
	}
	if err != nil || len(got) != len(keys) {
		t.Errorf("%v was read as %+v, %v", answers, got, err)
		return
	}
	for i, c := range got {
		a := answers[i]
		if c.Key != keys[i] || c.Count != a.Count || c.Likes != a.Likes || c.Stale != a.Stale || a.AsOf != nil && !c.AsOf.Equal(a.AsOf.AsTime()) {
			t.Errorf("%v was read as %+v", a, c)
		}
	}
}

func checkLiked(t *testing.T, got []LikeState, err error, answers []*plusonev1.LikeState, keys []string) {
	t.Helper()
	if !slices.EqualFunc(answers, keys, func(l *plusonev1.LikeState, key string) bool { return l != nil && l.Key == key }) {
		wantFailed(t, err, false)
		return
	}
	if err != nil || len(got) != len(keys) {
		t.Errorf("%v was read as %+v, %v", answers, got, err)
		return
	}
	for i, l := range got {
		a := answers[i]
		if l.Key != keys[i] || l.Liked != a.Liked || a.Liked && a.LikedAt != nil && !l.Since.Equal(a.LikedAt.AsTime()) {
			t.Errorf("%v was read as %+v", a, l)
		}
	}
}

// FuzzErrors has a server fail every call with whatever status: the call ends in its time with an error that says
// so, and a change is in doubt unless the status says that nothing was counted. It runs in a bubble, so that retries
// take no time.
func FuzzErrors(f *testing.F) {
	info := func(reason string) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Domain: errorDomain, Reason: reason}
	}
	retry := func(d *durationpb.Duration) *errdetails.RetryInfo { return &errdetails.RetryInfo{RetryDelay: d} }
	for _, seed := range []struct {
		code    codes.Code
		details []protoadapt.MessageV1
	}{
		{codes.Unavailable, nil},
		{codes.Unavailable, []protoadapt.MessageV1{info("STORE_UNAVAILABLE"), retry(durationpb.New(time.Second))}},
		{codes.Unavailable, []protoadapt.MessageV1{info("OUTCOME_UNKNOWN"), retry(durationpb.New(-time.Second))}},
		{codes.ResourceExhausted, []protoadapt.MessageV1{info("OVERLOADED"), retry(durationpb.New(200 * time.Millisecond))}},
		{codes.ResourceExhausted, []protoadapt.MessageV1{info("STORE_FULL"), retry(&durationpb.Duration{Seconds: 315_576_000_000})}},
		{codes.ResourceExhausted, []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "other", Reason: "OVERLOADED"}}},
		{codes.InvalidArgument, []protoadapt.MessageV1{
			info("INVALID_REQUEST"),
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "key", Description: "is empty"}}},
		}},
		{codes.Internal, []protoadapt.MessageV1{&errdetails.DebugInfo{Detail: "d"}}},
		{codes.Code(99), nil},
	} {
		s, err := status.New(seed.code, "refused").WithDetails(seed.details...)
		if err != nil {
			f.Fatal(err)
		}
		addAnswer(f, s.Proto())
	}
	// Of a status with these codes or reasons the contract says that nothing was counted.
	nothing := []codes.Code{
		codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition,
		codes.OutOfRange, codes.Unimplemented, codes.Unauthenticated,
	}
	nothingFor := []string{"STORE_UNAVAILABLE", "OVERLOADED", "STORE_FULL", "RATE_LIMITED", "GUARD_UNAVAILABLE"}
	f.Fuzz(func(t *testing.T, wire []byte) {
		s := decode(wire, &statuspb.Status{})
		if s.GetCode() == int32(codes.OK) { // which is no error, and no code for one
			return
		}
		refusal := status.FromProto(s)
		reason := "" // of a server that is plusone's
		for _, detail := range refusal.Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == "plusone" {
				reason = info.Reason
			}
		}
		synctest.Test(t, func(t *testing.T) {
			c := (&sameAnswer{err: refusal.Err()}).client()
			for _, call := range []func() error{
				func() error { _, err := c.Increment(t.Context(), "a", 1); return err },
				func() error { _, err := c.Get(t.Context(), "a"); return err },
			} {
				began := time.Now()
				err := call()
				if took := time.Since(began); took > DefaultTimeout {
					t.Errorf("the call took %v", took)
				}
				var e *Error
				if !errors.As(err, &e) || e.Error() == "" || e.Code != codes.Code(s.Code) || e.Message != s.Message ||
					e.Reason != reason || e.Attempts < 1 || e.Attempts > 1_000 || e.RetryAfter < 0 {
					t.Fatalf("the error is %#v", err)
				}
				_ = errors.Is(err, ErrUnavailable)
				certain := slices.Contains(nothing, e.Code) || slices.Contains(nothingFor, reason)
				if e.InDoubt != (e.RequestID != "" && !certain) {
					t.Errorf("in doubt is %v: %v", e.InDoubt, err)
				}
			}
		})
	})
}
