package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// fuzzPatience is far longer than any answer takes.
const fuzzPatience = 30 * time.Second

// rawCodec sends bytes for protobuf, and gives back those of the answer.
type rawCodec struct{}

var errRawCodec = errors.New("raw codec was given something else than bytes")

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	if body, ok := v.(*[]byte); ok {
		return *body, nil
	}
	return nil, errRawCodec
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	body, ok := v.(*[]byte)
	if !ok {
		return errRawCodec
	}
	*body = slices.Clone(data)
	return nil
}

// method is one of the API's.
type method struct {
	path           string
	input, output  protoreflect.MessageType
	answersStreams bool
}

// methodsByName are all methods of the API, also those that a later version adds.
func methodsByName(tb testing.TB) map[string]method {
	tb.Helper()
	methods := map[string]method{}
	for _, file := range []protoreflect.FileDescriptor{plusonev1.File_plusone_v1_counter_proto, plusonev1.File_plusone_v1_report_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				d := service.Methods().Get(j)
				input, inputErr := protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName())
				output, outputErr := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
				if err := errors.Join(inputErr, outputErr); err != nil {
					tb.Fatal(err)
				}
				path := fmt.Sprintf("/%s/%s", service.FullName(), d.Name())
				methods[string(d.Name())] = method{path, input, output, d.IsStreamingServer()}
			}
		}
	}
	return methods
}

// call sends a body and returns the answer, of a stream the first one.
func (m method) call(ctx context.Context, conn *grpc.ClientConn, body []byte, options ...grpc.CallOption) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, fuzzPatience)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: m.answersStreams}, m.path,
		append(options, grpc.ForceCodec(rawCodec{}))...)
	if err != nil {
		return nil, err
	}
	// An error of sending says only that the stream has ended; why is what receiving tells.
	_ = errors.Join(stream.SendMsg(&body), stream.CloseSend())
	return answer, stream.RecvMsg(&answer)
}

// wireStore has the true time, so that few requests ask for a moment that the server has to wait for.
func wireStore() *scriptedStore {
	return &scriptedStore{counts: func(_ context.Context, keys []string) []counter.Reading {
		return readAll(keys, func(key string) int64 { return int64(len(key)) }, time.Now())
	}}
}

// stillServes fails unless the server answers others, works on nothing else, and has caught no panic.
func (r *running) stillServes(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
	defer cancel()
	resp, err := r.client.Get(ctx, &plusonev1.GetRequest{Key: "witness", MaxAge: durationpb.New(0)})
	if err != nil || resp.Count.GetCount() != int64(len("witness")) {
		t.Errorf("another client got %v, %v", resp, err)
	}
	for r.server.admission.requests.Load() > 0 {
		if err := sleep(ctx, time.Millisecond); err != nil {
			t.Fatalf("the server still works on %d requests", r.server.admission.requests.Load())
		}
	}
	if log := r.log.take(); strings.Contains(log, "panic") {
		t.Errorf("the server panicked:\n%s", log)
	}
}

// take returns the log so far, which it forgets.
func (b *safeBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// FuzzWire sends bytes as the request of a method: what is no request at all is refused, and all else is
// answered, or refused for fields that it has.
func FuzzWire(f *testing.F) {
	moment := timestamppb.New(storeTime)
	for name, requests := range map[string][]proto.Message{
		"Increment": {
			&plusonev1.IncrementRequest{Key: "k", Delta: proto.Int64(-3), RequestId: uuidV7, Actor: "a", OncePer: durationpb.New(time.Hour)},
			&plusonev1.IncrementRequest{Key: " ", Delta: proto.Int64(0), OncePer: durationpb.New(-1)},
		},
		"BatchIncrement": {
			&plusonev1.BatchIncrementRequest{Entries: []*plusonev1.BatchEntry{{Key: "a", Delta: 1}, {Key: "b", Delta: -1}}, RequestId: "r"},
			&plusonev1.BatchIncrementRequest{Entries: make([]*plusonev1.BatchEntry, 12)},
		},
		"Get":           {&plusonev1.GetRequest{Key: "k", MaxAge: durationpb.New(time.Second), MinAsOf: moment}},
		"BatchGet":      {&plusonev1.BatchGetRequest{Keys: []string{"a", "b", "a"}, MinAsOf: moment}, &plusonev1.BatchGetRequest{}},
		"Like":          {&plusonev1.LikeRequest{Key: "k", Actor: "a", RequestId: uuidV7}},
		"Unlike":        {&plusonev1.UnlikeRequest{Key: "k", Actor: "a"}},
		"BatchGetLikes": {&plusonev1.BatchGetLikesRequest{Actor: "a", Keys: []string{"k", "\t"}}},
		"ListLikers":    {&plusonev1.ListLikersRequest{Key: "k", PageSize: 7, PageToken: pageToken(likersOfKey, "k", counter.LikeCursor{At: storeTime, Name: "a"})}},
		"ListLiked":     {&plusonev1.ListLikedRequest{Actor: "a", PageSize: -1, PageToken: "!"}},
	} {
		for _, req := range requests {
			body, err := proto.Marshal(req)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(name, body)
		}
	}
	f.Add("Increment", []byte("\x0a\x01k"))          // a key alone
	f.Add("Get", []byte("\x0a\x01\xff"))             // a key that is not UTF-8
	f.Add("Get", []byte("\x0a\xff\xff\xff\xff\x0f")) // a key that is longer than the request
	f.Add("Get", []byte("\x0a\x01k\x1b\x1c"))        // a group that no version has
	methods := methodsByName(f)
	store := wireStore()
	r := start(f, store, Config{})
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		m, ok := methods[name]
		if !ok {
			return
		}
		defer r.stillServes(t)
		req := m.input.New().Interface()
		notProto := proto.Unmarshal(body, req)
		store.takeChanges()
		answer, err := m.call(t.Context(), r.conn, body)
		if notProto != nil {
			wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST"})
			return
		}
		if err == nil {
			resp := m.output.New().Interface()
			if err := proto.Unmarshal(answer, resp); err != nil || len(resp.ProtoReflect().GetUnknown()) > 0 {
				t.Errorf("%s: %v was answered with %q, %v", name, req, answer, err)
			}
			return
		}
		refusal := failureOf(t, err)
		if refusal.code != codes.InvalidArgument || refusal.retry || len(refusal.fields) == 0 ||
			refusal.reason != "INVALID_REQUEST" && refusal.reason != "MIN_AS_OF_AHEAD" {
			t.Errorf("%s: %v was refused with %v", name, req, err)
		}
		for _, field := range refusal.fields {
			if !hasField(req.ProtoReflect(), field) {
				t.Errorf("%s: %v was refused for %q, which it does not have", name, req, field)
			}
		}
		if changes := store.takeChanges(); len(changes) > 0 {
			t.Errorf("%s: %v was refused, and the store saw %+v", name, req, changes)
		}
	})
}
