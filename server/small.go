package server

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// maxSmallBytes is the largest request of the health service, which names a service. Strangers may call it, and gRPC has one
// limit for all methods, which is that of the largest batch.
const maxSmallBytes = 512

// frames is a stream of gRPC's transport, as gRPC itself reads it: a message comes behind a header of 5 bytes, whether it is
// compressed and how long it is.
type frames interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
	RecvCompress() string
}

// receiveSmall returns what receives the one request of a call as receive does, but takes no more than maxSmallBytes of it, nor
// anything behind it.
func (c *codec) receiveSmall(ctx context.Context, receive func(any) error) func(any) error {
	stream, ok := grpc.ServerTransportStreamFromContext(ctx).(frames)
	if !ok {
		return receive
	}
	return func(v any) error {
		data, err := readSmall(stream)
		if err != nil {
			if st := callerStatus(ctx); st != nil {
				return &rpcError{status: st, cause: err}
			}
			return &rpcError{status: statusNotSmall, cause: err}
		}
		defer data.Free()
		return c.Unmarshal(data, v)
	}
}

var (
	errNotSmall      = errors.New("too large")
	errSecondMessage = errors.New("another message")
)

// readSmall reads the one message of a stream.
func readSmall(stream frames) (mem.BufferSlice, error) {
	var header [5]byte
	if err := stream.ReadMessageHeader(header[:]); err != nil {
		return nil, fmt.Errorf("read a header: %w", err)
	}
	compressed, n := header[0] != 0, binary.BigEndian.Uint32(header[1:])
	if n > maxSmallBytes {
		return nil, errNotSmall
	}
	data, err := stream.Read(int(n))
	if err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	if err := stream.ReadMessageHeader(header[:]); !errors.Is(err, io.EOF) {
		data.Free()
		return nil, fmt.Errorf("behind the message: %w", cmp.Or(err, errSecondMessage))
	}
	if !compressed {
		return data, nil
	}
	defer data.Free()
	return decompressSmall(stream.RecvCompress(), data)
}

// decompressSmall decompresses a message.
func decompressSmall(name string, data mem.BufferSlice) (mem.BufferSlice, error) {
	compressor := encoding.GetCompressor(name)
	if compressor == nil {
		return nil, fmt.Errorf("unknown compression %q", name)
	}
	r, err := compressor.Decompress(data.Reader())
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	message, err := io.ReadAll(io.LimitReader(r, maxSmallBytes+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(message) > maxSmallBytes {
		return nil, errNotSmall
	}
	return mem.BufferSlice{mem.SliceBuffer(message)}, nil
}
