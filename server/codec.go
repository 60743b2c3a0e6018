package server

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/counter"
)

// codec is gRPC's for protobuf. Of a request, it counts what there may be many of before it is decoded: an empty entry is two
// bytes, also compressed to next to nothing, and a hundred in memory. What is wrong with a request it notes there, as gRPC
// answers an error of a codec by itself, and before anyone could count it or say more.
type codec struct {
	encoding.CodecV2
	metrics *metrics
}

func newCodec(m *metrics) *codec {
	return &codec{CodecV2: encoding.GetCodecV2(encodingproto.Name), metrics: m}
}

// Marshal implements encoding.CodecV2.
func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *answer:
		return v.buffers[:], nil
	case answers:
		return v.join(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	call, ok := v.(*arrival)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	call.fault = c.decode(data, call.request)
	return nil
}

// maxHealthBytes is the largest request of the health service, which names a service. Strangers may call it, and a watch keeps
// the name while it lasts.
const maxHealthBytes = 512

// decode decodes a request, or says why it is none.
func (c *codec) decode(data mem.BufferSlice, request any) error {
	if _, health := request.(*healthpb.HealthCheckRequest); health && data.Len() > maxHealthBytes {
		return &rpcError{status: statusHealthRequestTooLarge}
	}
	if many, ok := manyOf(request); ok && data.Len() > minItemBytes*many.most {
		buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buffer.Free()
		more, err := many.exceeded(buffer.ReadOnlyData())
		if err != nil {
			return &rpcError{status: statusUndecodable, cause: err}
		}
		if more {
			var v violations
			v.add(many.field, many.field, many.problem)
			return c.metrics.refuse(&v)
		}
		data = mem.BufferSlice{buffer}
	}
	if len(data) == 1 {
		if p, ok := plainOf(request); ok && p.decode(data[0].ReadOnlyData()) {
			return nil
		}
	}
	if err := c.CodecV2.Unmarshal(data, request); err != nil {
		return &rpcError{status: statusUndecodable, cause: err}
	}
	return nil
}

// minItemBytes is an empty item on the wire: its tag and its length.
const minItemBytes = 2

// many is what a request has many of.
type many struct {
	first, last protowire.Number // the fields with them
	most        int              // together
	field       string           // whose violation it is if there are more
	problem     string
}

var (
	manyEntries = many{1, 1, counter.MaxEntries, "entries", fmt.Sprintf("must be 1 to %d entries, not more", counter.MaxEntries)}
	manyImports = many{1, 2, counter.MaxEntries, "totals", fmt.Sprintf("and likes must be 1 to %d together, not more", counter.MaxEntries)}
	manyKeys    = many{1, 1, counter.MaxReadKeys, "keys", fmt.Sprintf("must be 1 to %d keys, not more", counter.MaxReadKeys)}
	manyLikes   = many{2, 2, counter.MaxReadKeys, manyKeys.field, manyKeys.problem}
)

// manyOf returns what a request has many of, if there is anything.
func manyOf(request any) (*many, bool) {
	switch request.(type) {
	case *plusonev1.BatchIncrementRequest:
		return &manyEntries, true
	case *plusonev1.BatchGetRequest:
		return &manyKeys, true
	case *plusonev1.BatchGetLikesRequest:
		return &manyLikes, true
	case *plusonev1.ImportRequest:
		return &manyImports, true
	}
	return nil, false
}

var errWireFormat = errors.New("invalid wire format")

// exceeded reports whether a message has more items than it may, or an error if it is no message up to there.
func (m *many) exceeded(message []byte) (bool, error) {
	for n := 0; len(message) > 0; {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return false, errWireFormat
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(number, kind, message); size < 0 {
			return false, errWireFormat
		}
		message = message[size:]
		if kind == protowire.BytesType && m.first <= number && number <= m.last {
			if n++; n > m.most {
				return true, nil
			}
		}
	}
	return false, nil
}
