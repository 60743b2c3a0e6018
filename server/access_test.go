package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/identity"
)

// byName takes the name of an identity for its token.
type byName map[string]*identity.Identity

func (b byName) Authenticate(_ context.Context, authorization []string, _ *x509.Certificate) (*identity.Identity, error) {
	switch {
	case len(authorization) != 1:
		return nil, identity.ErrNoCredentials
	case authorization[0] == "Bearer broken":
		return nil, errors.New("it is broken: hunter2")
	case authorization[0] == "Bearer panic":
		panic("hunter2")
	}
	if who, ok := b[strings.TrimPrefix(authorization[0], "Bearer ")]; ok {
		return who, nil
	}
	return nil, identity.ErrUnknownToken
}

var everyScope = identity.Read | identity.Write | identity.Report | identity.Admin

var people = byName{
	"read":    {Name: "read", Scopes: identity.Read, Namespaces: []string{"*"}},
	"write":   {Name: "write", Scopes: identity.Write, Namespaces: []string{"*"}},
	"report":  {Name: "report", Scopes: identity.Report, Namespaces: []string{"*"}},
	"admin":   {Name: "admin", Scopes: identity.Admin, Namespaces: []string{"*"}},
	"nothing": {Name: "nothing", Namespaces: []string{"*"}},
	"views":   {Name: "views", Scopes: everyScope, Namespaces: []string{"views", "like*"}},
	"ann":     {Name: "ann", Scopes: everyScope, Namespaces: []string{"*"}, Actor: "user:ann"},
	"ben":     {Name: "ben", Scopes: everyScope, Namespaces: []string{"views"}, Actor: "user:ben"},
}

func as(name string) context.Context {
	ctx := context.Background()
	if name == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+name)
}

// Each method there is asks for its scope, and one that nobody has thought of is closed.
func TestMethodsAskForScopes(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	methods := 0
	for service, info := range r.server.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			methods++
			name := "/" + service + "/" + m.Name
			health, reflection := service == "grpc.health.v1.Health", strings.HasPrefix(service, "grpc.reflection.")
			for caller, who := range people {
				if who.Actor != "" || caller == "views" {
					continue
				}
				scope, listed := methodScopes[name]
				if service == "plusone.v1.AdminService" {
					scope, listed = identity.Admin, true
				}
				denied := !health && !reflection && (!listed || !who.May(scope))
				if got := callOf(t, r.conn, as(caller), name, m); got == codes.PermissionDenied != denied {
					t.Errorf("%s by %s: %v, denied should be %t", name, caller, got, denied)
				}
			}
			for _, caller := range []string{"", "nobody"} {
				if got := callOf(t, r.conn, as(caller), name, m); (got == codes.Unauthenticated) == health {
					t.Errorf("%s by %q: %v", name, caller, got)
				}
			}
			if rule := ruleOf(name, true); rule == nil || rule.public {
				t.Errorf("%s with private health checks has the rule %+v", name, rule)
			}
		}
	}
	if methods < 13 {
		t.Errorf("there are only %d methods", methods)
	}
	for _, name := range []string{"/plusone.v1.CounterService/New", "/other.Service/Method", "/plusone.v2.AdminService/X"} {
		if rule := ruleOf(name, false); rule != nil {
			t.Errorf("%s has the rule %+v", name, rule)
		}
	}
	if rule := ruleOf("/plusone.v1.AdminService/Any", false); rule == nil || rule.scope != identity.Admin || !rule.requests {
		t.Errorf("the rule of administration is %+v", rule)
	}
}

// callOf calls a method with an empty request, and returns the code of its answer.
func callOf(t *testing.T, conn *grpc.ClientConn, ctx context.Context, name string, m grpc.MethodInfo) codes.Code { //nolint:revive // the test comes first
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var in, out healthpb.HealthCheckRequest // any message: it is empty
	if !m.IsServerStream {
		return status.Code(conn.Invoke(ctx, name, &in, &out))
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name)
	if err == nil {
		err = stream.SendMsg(&in)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = stream.RecvMsg(&out)
	}
	return status.Code(err)
}

// The rule of a method that is missing is closed in the interceptors too.
func TestUnlistedMethodIsClosed(t *testing.T) {
	t.Parallel()
	a := &access{authenticator: people, metrics: newMetrics()}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer views"))
	if _, _, err := a.admit(ctx, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a method without a rule: %v", err)
	}
}

// An identity touches its namespaces only, and a bound one acts for its actor only.
func TestRequestsAreChecked(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	inc := func(key, actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := r.client.Increment(ctx, &plusonev1.IncrementRequest{Key: key, Actor: actor})
			return err
		}
	}
	batch := func(keys ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			req := &plusonev1.BatchIncrementRequest{}
			for _, key := range keys {
				req.Entries = append(req.Entries, &plusonev1.BatchEntry{Key: key, Delta: 1})
			}
			_, err := r.client.BatchIncrement(ctx, req)
			return err
		}
	}
	like := func(key, actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := r.client.Like(ctx, &plusonev1.LikeRequest{Key: key, Actor: actor})
			_, unlikeErr := r.client.Unlike(ctx, &plusonev1.UnlikeRequest{Key: key, Actor: actor})
			if status.Code(err) != status.Code(unlikeErr) {
				t.Errorf("Like says %v, Unlike %v", err, unlikeErr)
			}
			return err
		}
	}
	get := func(keys ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := r.client.BatchGet(ctx, &plusonev1.BatchGetRequest{Keys: keys})
			if len(keys) == 1 {
				_, one := r.client.Get(ctx, &plusonev1.GetRequest{Key: keys[0]})
				_, likers := r.reports.ListLikers(ctx, &plusonev1.ListLikersRequest{Key: keys[0]})
				if status.Code(err) != status.Code(one) || status.Code(err) != status.Code(likers) {
					t.Errorf("BatchGet says %v, Get %v, ListLikers %v", err, one, likers)
				}
			}
			return err
		}
	}
	likes := func(actor string, keys ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := r.client.BatchGetLikes(ctx, &plusonev1.BatchGetLikesRequest{Actor: actor, Keys: keys})
			return err
		}
	}
	liked := func(actor string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := r.reports.ListLiked(ctx, &plusonev1.ListLikedRequest{Actor: actor})
			return err
		}
	}
	const namespace, actor = "NAMESPACE_DENIED", "ACTOR_DENIED"
	for i, test := range []struct {
		who  string
		call func(context.Context) error
		want string // the reason, or empty if the call is let in
	}{
		{"views", inc("views/a", "user:any"), ""},
		{"views", inc("likes/a", ""), ""},
		{"views", inc("viewsx/a", ""), namespace},
		{"views", inc("views", ""), namespace},
		{"views", inc("/views/a", ""), namespace},
		{"views", batch("views/a", "likes/b"), ""},
		{"views", batch("views/a", "views/b", "other/c"), namespace},
		{"views", batch("other/c", "views/a"), namespace},
		{"views", batch("a", "views/a"), namespace},
		{"views", like("likes/a", "user:any"), ""},
		{"views", like("other/a", "user:any"), namespace},
		{"views", get("views/a"), ""},
		{"views", get("other/a"), namespace},
		{"views", get("views/a", "other/a"), namespace},
		{"views", likes("user:any", "views/a"), ""},
		{"views", likes("user:any", "views/a", "other/a"), namespace},
		{"views", liked("user:any"), ""},
		{"ann", inc("any/a", "user:ann"), ""},
		{"ann", inc("any/a", ""), ""},
		{"ann", inc("any/a", "user:ben"), actor},
		{"ann", batch("any/a", "b"), ""},
		{"ann", like("any/a", "user:ann"), ""},
		{"ann", like("any/a", "user:ben"), actor},
		{"ann", likes("user:ann", "any/a"), ""},
		{"ann", likes("user:ben", "any/a"), actor},
		{"ann", liked("user:ann"), ""},
		{"ann", liked("user:ben"), actor},
		{"ann", get("any/a"), ""},
		{"ben", inc("views/a", "user:ben"), ""},
		{"ben", inc("views/a", "user:ann"), actor},
		{"ben", inc("other/a", "user:ben"), namespace},
	} {
		err := test.call(as(test.who))
		if test.want == "" {
			if err != nil {
				t.Errorf("case %d: %v", i, err)
			}
			continue
		}
		wantFailure(t, err, failure{code: codes.PermissionDenied, reason: test.want})
	}
}

// The answer is the same whatever is wrong with credentials; the log and a metric tell why.
func TestRefusalsTellNothing(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	call := func(name string) error {
		_, err := r.client.Get(as(name), &plusonev1.GetRequest{Key: "views/a"})
		return err
	}
	first, second := call(""), call("hunter2")
	wantFailure(t, first, failure{code: codes.Unauthenticated, reason: "UNAUTHENTICATED"})
	if !proto.Equal(status.Convert(first).Proto(), status.Convert(second).Proto()) {
		t.Errorf("answers differ: %v and %v", first, second)
	}
	wantFailure(t, call("nothing"), failure{code: codes.PermissionDenied, reason: "MISSING_SCOPE"})
	if err := call("broken"); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a broken authenticator: %v", err)
	}
	if err := call("panic"); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a panic: %v", err)
	}
	if err := call("read"); err != nil {
		t.Errorf("after a panic: %v", err)
	}
	for _, reason := range []string{"no_credentials", "unknown_token", "missing_scope"} {
		if n := value(t, r.server.cache.metrics.refused.WithLabelValues(reason)); n != 1 {
			t.Errorf("%s counts %v", reason, n)
		}
	}
	if text := r.log.String(); !strings.Contains(text, "level=INFO msg=\"call refused\" method=/plusone.v1.CounterService/Get") ||
		!strings.Contains(text, "cause=unknown_token") {
		t.Errorf("the log is\n%s", text)
	}
}

// A stream of whom nobody knows is refused; one that is let in has its caller in its context, and its messages are
// checked if they are about counters.
func TestStreamsAreChecked(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	open := func(name string) error {
		stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(as(name))
		if err != nil {
			return err
		}
		err = stream.Send(&reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
		})
		if err == nil || errors.Is(err, io.EOF) { // which says that it was refused before, and Recv says why
			_, err = stream.Recv()
		}
		_ = stream.CloseSend()
		return err
	}
	if err := open("nothing"); err != nil {
		t.Errorf("reflection for an identity without scopes: %v", err)
	}
	wantFailure(t, open(""), failure{code: codes.Unauthenticated, reason: "UNAUTHENTICATED"})

	who := people["views"]
	in := &fakeStream{ctx: identity.NewContext(context.Background(), who), key: "views/a"}
	a := &access{authenticator: people, metrics: newMetrics()}
	counted := &countedStream{
		ServerStream: in, method: &methodCalls{}, ctx: identity.NewContext(context.Background(), who),
		check: func(req any) error { return a.check(who, req) },
	}
	if identity.FromContext(counted.Context()) != who {
		t.Error("the context of the stream lacks its caller")
	}
	if err := counted.RecvMsg(&plusonev1.GetRequest{}); err != nil {
		t.Errorf("a message within the limits: %v", err)
	}
	in.key = "other/a"
	wantFailure(t, counted.RecvMsg(&plusonev1.GetRequest{}), failure{code: codes.PermissionDenied, reason: "NAMESPACE_DENIED"})
}

// fakeStream receives requests for a key.
type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
	key string
}

func (s *fakeStream) RecvMsg(m any) error {
	req, ok := m.(*plusonev1.GetRequest)
	if !ok {
		return errors.New("it is another request")
	}
	req.Key = s.key
	return nil
}

// Lists of likes have only what their reader may touch.
func TestListLikedIsCut(t *testing.T) {
	t.Parallel()
	reports := &scriptedReports{}
	var all, mine []string
	for i := range 4 * counter.MaxListed { // rows of others are between, and many at a time
		key := fmt.Sprint("secret/", i)
		if i%1_300 == 7 || i < 3 {
			key = fmt.Sprint("likes/", i)
			mine = append(mine, key)
		}
		all = append(all, key)
		reports.likes = append(reports.likes, counter.Liked{
			Pair: counter.Pair{Key: key, Actor: "user:any"}, At: storeTime.Add(-time.Duration(i) * time.Second),
		})
	}
	r := startWith(t, &scriptedStore{}, reports, Config{Authenticator: people})
	list := func(caller string, size int32) (keys []string, pages int) {
		for token := ""; ; pages++ {
			resp, err := r.reports.ListLiked(as(caller), &plusonev1.ListLikedRequest{Actor: "user:any", PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range resp.Liked {
				keys = append(keys, l.Key)
			}
			if token = resp.NextPageToken; token == "" {
				return keys, pages + 1
			}
			if len(resp.Liked) != int(size) {
				t.Errorf("a page of %d has %d likes, and is not the last", size, len(resp.Liked))
			}
			cursor, ok := parsePageToken(likedByActor, "user:any", token)
			if !ok || cursor.Name != keys[len(keys)-1] {
				t.Fatalf("a token has %q, and the last key is %q", cursor.Name, keys[len(keys)-1])
			}
		}
	}
	for size := range int32(len(mine) + 2) {
		if size == 0 {
			continue
		}
		keys, pages := list("views", size)
		if want := (len(mine) + int(size) - 1) / int(size); !slices.Equal(keys, mine) || pages != want {
			t.Errorf("pages of %d: %q in %d pages, want %q in %d", size, keys, pages, mine, want)
		}
	}
	if keys, _ := list("report", counter.MaxListed); !slices.Equal(keys, all) {
		t.Errorf("who may touch all namespaces sees %d of %d", len(keys), len(all))
	}
	reports.likes = slices.DeleteFunc(reports.likes, func(l counter.Liked) bool { return slices.Contains(mine, l.Key) })
	if keys, pages := list("views", 1); len(keys) != 0 || pages != 1 {
		t.Errorf("of nothing: %q in %d pages", keys, pages)
	}
}

// Strangers fill neither the log nor its share of other lines.
func TestRefusalsAreLoggedSparingly(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	for i := range 200 {
		_, err := r.client.Get(as(fmt.Sprint("x", i)), &plusonev1.GetRequest{Key: "views/a"})
		wantFailure(t, err, failure{code: codes.Unauthenticated, reason: "UNAUTHENTICATED"})
	}
	_, err := r.client.Get(as("read"), &plusonev1.GetRequest{})
	wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: []string{"key"}})
	text := r.log.String()
	if n := bytes.Count([]byte(text), []byte("call refused")); n > 100 {
		t.Errorf("%d lines for 200 refusals", n)
	}
	if !strings.Contains(text, "code=InvalidArgument") {
		t.Error("another line was left out")
	}
}

// slowKeys knows a token once its key is there, for which it waits as long as it may.
type slowKeys struct{ arrived chan struct{} }

func (s slowKeys) Authenticate(ctx context.Context, _ []string, _ *x509.Certificate) (*identity.Identity, error) {
	select {
	case <-s.arrived:
		return people["views"], nil
	case <-ctx.Done():
		return nil, identity.ErrUnknownKey
	}
}

// A call waits for the key of its token, and holds up no other.
func TestCallsWaitForKeys(t *testing.T) {
	t.Parallel()
	slow := slowKeys{arrived: make(chan struct{})}
	r := start(t, &scriptedStore{}, Config{Authenticator: slow})
	const calls = 10
	ended := make(chan error, calls)
	for range calls {
		go func() {
			_, err := r.client.Get(as("any"), &plusonev1.GetRequest{Key: "views/a"})
			ended <- err
		}()
	}
	// On the same connection others are answered.
	if _, err := healthpb.NewHealthClient(r.conn).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	close(slow.arrived)
	for range calls {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// A stranger's request is refused by its headers, before it has been sent.
func TestStrangersAreNotRead(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Authenticator: people})
	ctx, cancel := context.WithTimeout(as("nobody"), 10*time.Second)
	defer cancel()
	stream, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, plusonev1.CounterService_Get_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	wantFailure(t, stream.RecvMsg(&plusonev1.GetResponse{}), failure{code: codes.Unauthenticated, reason: "UNAUTHENTICATED"})
	if n := r.server.cache.metrics.calls.methods[plusonev1.CounterService_Get_FullMethodName].handled[codes.Unauthenticated].Load(); n != 1 {
		t.Errorf("%d calls are counted", n)
	}
}

// A retry must be the same change at a server that has policies and at one that has none.
func TestBoundActorsAreCompleted(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{}
	r := start(t, store, Config{Authenticator: people})
	for _, actor := range []string{"", "user:ann"} {
		if _, err := r.client.Increment(as("ann"), &plusonev1.IncrementRequest{Key: "views/1", Actor: actor}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range store.changes {
		if c.Actor != "user:ann" {
			t.Errorf("the actor is %q", c.Actor)
		}
	}
}
