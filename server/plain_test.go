package server

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
)

// requestsWithPlainForm are empty requests of the types that may be decoded by hand.
func requestsWithPlainForm() []proto.Message {
	return []proto.Message{&plusonev1.IncrementRequest{}, &plusonev1.LikeRequest{}, &plusonev1.UnlikeRequest{}}
}

// Requests as callers make them are decoded by hand, into what the library makes of them.
func TestPlain(t *testing.T) {
	t.Parallel()
	for _, want := range []proto.Message{
		&plusonev1.IncrementRequest{},
		&plusonev1.IncrementRequest{Key: "views/1"},
		&plusonev1.IncrementRequest{Key: "ключ", Delta: new(int64(1)), RequestId: uuidV7, Actor: "ann"},
		&plusonev1.IncrementRequest{Key: "k", Delta: new(int64(math.MinInt64))},
		&plusonev1.IncrementRequest{Key: "k", Delta: new(int64(0))},
		&plusonev1.LikeRequest{Key: "posts/1", Actor: "ann", RequestId: "id"},
		&plusonev1.UnlikeRequest{Key: "posts/1", Actor: "ann"},
	} {
		got := want.ProtoReflect().New().Interface()
		if p, ok := plainOf(got); !ok || !p.decode(encode(t, want)) || !proto.Equal(got, want) {
			t.Errorf("%v was decoded by hand: %v, want %v", got, ok, want)
		}
	}
}

// The library decodes all else: it knows better.
func TestPlainLeavesTheRest(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string][]byte{
		"a message in it": encode(t, &plusonev1.IncrementRequest{Key: "k", OncePer: durationpb.New(1)}),
		"no UTF-8":        {1<<3 | 2, 1, 0xff},
		"another type":    {1 << 3, 1},
		"another field":   {9<<3 | 2, 0},
		"cut off":         {1<<3 | 2, 2, 'k'},
		"no tag":          {0},
	} {
		for _, req := range requestsWithPlainForm() {
			if p, ok := plainOf(req); !ok || p.decode(wire) {
				t.Errorf("%s: %T was decoded by hand: %v", name, req, ok)
			}
		}
	}
	if _, ok := plainOf(&plusonev1.BatchIncrementRequest{}); ok {
		t.Error("a batch has a plain form")
	}
}

// FuzzPlain: what is decoded by hand is what the library would have made of it.
func FuzzPlain(f *testing.F) {
	f.Add([]byte{1<<3 | 2, 1, 'k', 2 << 3, 1, 3<<3 | 2, 1, 'i', 4<<3 | 2, 1, 'a', 1<<3 | 2, 1, 'l'})
	f.Add([]byte{1<<3 | 2, 0x80, 0, 2 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0x8a, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, got := range requestsWithPlainForm() {
			if p, _ := plainOf(got); !p.decode(wire) {
				continue
			}
			want := got.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(wire, want); err != nil || !proto.Equal(got, want) {
				t.Errorf("%x is %v by hand, and %v by the library: %v", wire, got, want, err)
			}
		}
	})
}
