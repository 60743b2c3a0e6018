package client

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
)

// A sum stays in doubt if one piece is, whichever is told of first.
func TestDividedSumInDoubt(t *testing.T) {
	t.Parallel()
	doubt := &Error{Code: codes.Unavailable, InDoubt: true, RequestID: "id"}
	refused := &Error{Code: codes.PermissionDenied}
	for _, errs := range [][]error{{doubt, refused}, {refused, doubt}, {refused, nil}, {nil, refused}} {
		o := &Coalescer{cfg: coalescerConfig{maxDelta: 1}, room: make(chan struct{})}
		r := &round{}
		pieces, _ := o.pieces(r, []sum{{key: "k", delta: 2, adds: 2}})
		for i, err := range errs {
			if err == nil || errors.Is(err, ErrInDoubt) {
				r.count(pieces[i : i+1])
			}
			if err != nil {
				r.fail(pieces[i:i+1], err)
			}
		}
		o.join(r)
		var e *Error
		if !errors.As(r.failed["k"], &e) || !e.InDoubt || e.RequestID != "" || o.Stats().InDoubt != 2 {
			t.Errorf("%v make %v, stats %+v", errs, r.failed["k"], o.Stats())
		}
	}
}
