package server

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// adminMethod is a method of AdminService.
func adminMethod(name string) method {
	d := plusonev1.File_plusone_v1_admin_proto.Services().Get(0).Methods().ByName(protoreflect.Name(name))
	return method{path: fmt.Sprintf("/%s/%s", d.Parent().FullName(), name)}
}

// wantHandled fails unless so many calls of a method end with a code, and as many have begun as ended. gRPC may answer a little
// before they are counted.
func (r *running) wantHandled(t *testing.T, path string, code codes.Code, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m := r.server.cache.metrics.calls.methods[path]
	for {
		var ended uint64
		for i := range m.handled {
			ended += m.handled[i].Load()
		}
		began, got := m.started.Load(), int(m.handled[code].Load())
		if got == want && began == ended {
			return
		}
		if sleep(ctx, time.Millisecond) != nil {
			t.Fatalf("%s: %d calls ended with %v, want %d; %d began and %d ended", path, got, code, want, began, ended)
		}
	}
}

// A request of very many items is refused before it is decoded, which would cost fifty times its size, and is counted and logged.
func TestManyItemsAreNotDecoded(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{Admin: &Admin{Store: &scriptedAdmin{}, Ledger: &scriptedAdmin{}}})
	methods := methodsByName(t)
	refused := map[string]int{}
	entry, like := []byte{0x0a, 0}, []byte{0x12, 0}
	for _, tc := range []struct {
		method method
		item   []byte
		field  string
	}{
		{methods["BatchIncrement"], entry, "entries"},
		{methods["BatchGet"], entry, "keys"},
		{methods["BatchGetLikes"], like, "keys"},
		{adminMethod("Import"), entry, "totals"},
		{adminMethod("Import"), like, "totals"},
		{adminMethod("Import"), slices.Concat(entry, like), "totals"},
	} {
		body := bytes.Repeat(tc.item, (maxMessageBytes-8)/len(tc.item))
		for _, option := range []grpc.CallOption{grpc.EmptyCallOption{}, grpc.UseCompressor(gzip.Name)} {
			_, err := tc.method.call(t.Context(), r.conn, body, option)
			wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST", fields: []string{tc.field}})
			refused[tc.method.path]++
			r.wantHandled(t, tc.method.path, codes.InvalidArgument, refused[tc.method.path])
		}
	}
	for _, field := range []string{"entries", "keys", "totals"} {
		if n := value(t, r.server.cache.metrics.invalid.WithLabelValues(field)); n == 0 {
			t.Errorf("no violation of %s was counted", field)
		}
	}
	if log := r.log.String(); !strings.Contains(log, "entries: must be 1 to 10000 entries, not more") {
		t.Errorf("the log is\n%s", log)
	}
}

// The memory for a request is in proportion to its size, before the checks have seen it.
func TestMemoryOfRequests(t *testing.T) { // not parallel: it measures what is allocated
	c := newCodec(newMetrics())
	for _, req := range []any{
		&plusonev1.BatchIncrementRequest{}, &plusonev1.BatchGetRequest{}, &plusonev1.BatchGetLikesRequest{}, &plusonev1.ImportRequest{},
	} {
		for _, item := range [][]byte{{0x0a, 0}, {0x12, 0}} {
			data := mem.BufferSlice{mem.SliceBuffer(bytes.Repeat(item, maxMessageBytes/2))}
			call := &arrival{request: req}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := c.Unmarshal(data, call)
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; err != nil || used > 2*maxMessageBytes {
				t.Errorf("%T of % x: %d bytes were allocated for %d, %v", req, item, used, data.Len(), err)
			}
		}
	}
}

// What is counted is what would be decoded, whatever is around it.
func TestItemsAreCounted(t *testing.T) {
	t.Parallel()
	m := &many{first: 1, last: 1, most: 3}
	item := []byte{0x0a, 1, 'k'}
	items := func(n int) []byte { return bytes.Repeat(item, n) }
	other := slices.Concat([]byte{0x12, 2, 0x0a, 0}, []byte{0x18, 7}, []byte{0x23, 0x0a, 0, 0x24}) // a text, a number and a group
	number := []byte{0x08, 1}                                                                      // in the place of an item
	for name, tc := range map[string]struct {
		message []byte
		more    bool
		bad     bool
	}{
		"none":            {nil, false, false},
		"as many as may":  {items(3), false, false},
		"one more":        {items(4), true, false},
		"mixed":           {slices.Concat(other, items(2), other, items(1), other), false, false},
		"mixed, more":     {slices.Concat(items(2), other, items(1), other, items(1)), true, false},
		"of another kind": {slices.Concat(items(3), bytes.Repeat(number, 9)), false, false},
		"long tag":        {bytes.Repeat([]byte{0x8a, 0, 1, 'k'}, 4), true, false},
		"long length":     {bytes.Repeat([]byte{0x0a, 0x81, 0, 'k'}, 4), true, false},
		"cut":             {[]byte{0x0a, 9, 'k'}, false, true},
		"cut tag":         {[]byte{0x8a}, false, true},
		"field 0":         {[]byte{0x02, 0}, false, true},
		"open group":      {[]byte{0x0b, 0x0a, 0}, false, true},
		"bad, but later":  {append(items(4), 0xff), true, false},
	} {
		if more, err := m.exceeded(tc.message); more != tc.more || (err != nil) != tc.bad {
			t.Errorf("%s: %v, %v", name, more, err)
		}
	}
}

// Whatever a request may have many of is counted, also what a later version adds.
func TestAllRepeatedFieldsAreCounted(t *testing.T) {
	t.Parallel()
	for _, file := range []protoreflect.FileDescriptor{
		plusonev1.File_plusone_v1_counter_proto, plusonev1.File_plusone_v1_report_proto, plusonev1.File_plusone_v1_admin_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				input := methods.Get(j).Input()
				message, err := protoregistry.GlobalTypes.FindMessageByName(input.FullName())
				if err != nil {
					t.Fatal(err)
				}
				m, _ := manyOf(message.New().Interface())
				for k := range input.Fields().Len() {
					field := input.Fields().Get(k)
					counted := m != nil && m.first <= field.Number() && field.Number() <= m.last
					if field.Cardinality() == protoreflect.Repeated != counted {
						t.Errorf("%s is counted: %v", field.FullName(), counted)
					}
					if inner := field.Message(); inner != nil {
						for l := range inner.Fields().Len() {
							if f := inner.Fields().Get(l); f.Cardinality() == protoreflect.Repeated {
								t.Errorf("%s is in a message of a request, and not counted", f.FullName())
							}
						}
					}
				}
			}
		}
	}
}

// Calls without a request are counted and logged as others are, and those that are none get a reason.
func TestBadMessagesAreCounted(t *testing.T) {
	t.Parallel()
	r := start(t, &scriptedStore{}, Config{})
	get := methodsByName(t)["Get"]
	_, err := get.call(t.Context(), r.conn, []byte{0x0a, 1, 0xff})
	wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST"})
	_, err = get.call(t.Context(), r.conn, []byte{0x0a, 9})
	wantFailure(t, err, failure{code: codes.InvalidArgument, reason: "INVALID_REQUEST"})
	r.wantHandled(t, get.path, codes.InvalidArgument, 2)
	_, err = get.call(t.Context(), r.conn, make([]byte, maxMessageBytes+1))
	if f := failureOf(t, err); f.code != codes.ResourceExhausted { // by gRPC, which does not read it
		t.Errorf("too large: %v", err)
	}
	_, err = get.call(t.Context(), r.conn, make([]byte, 8*maxMessageBytes), grpc.UseCompressor(gzip.Name))
	if f := failureOf(t, err); f.code != codes.ResourceExhausted {
		t.Errorf("too large, compressed: %v", err)
	}
	r.wantHandled(t, get.path, codes.ResourceExhausted, 2)
	log := r.log.String()
	for _, want := range []string{"code=InvalidArgument", "UTF-8", "code=ResourceExhausted"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}
