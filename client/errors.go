package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrInDoubt: the change may or may not have been counted, because an attempt was sent whose answer never
// came. Repeating it with Error.RequestID settles the matter, once that is answered: if the repeated call
// fails too, in whatever way, the doubt about the first one stays. An error that is ErrInDoubt is often also
// another one, which says why the call gave up.
var ErrInDoubt = errors.New("plusone: outcome is unknown")

// Refusals: the request cannot succeed as it is. Do not repeat it unchanged.
var (
	// ErrInvalid: the request is malformed or beyond a limit; Error.Violations says where.
	ErrInvalid = errors.New("plusone: request is invalid")
	// ErrRequestIDReused: the id was used before, for another change.
	ErrRequestIDReused = errors.New("plusone: request id was used for another change")
	// ErrRequestIDExpired: the id is too old for the server to know whether it was counted, so it was not
	// counted now. If the client made the id in this very call, its clock is slow.
	ErrRequestIDExpired = errors.New("plusone: request id is too old")
	// ErrRequestIDEarly: the id is from the future; the clock that made it is fast. It is also ErrInvalid.
	ErrRequestIDEarly = errors.New("plusone: request id is from the future")
	// ErrUnauthenticated: the call has no credentials that the server takes.
	ErrUnauthenticated = errors.New("plusone: not authenticated")
	// ErrPermissionDenied: the caller may not do this; Error.Reason says why.
	ErrPermissionDenied = errors.New("plusone: permission denied")
	// ErrOverflow: a total would leave the range of int64.
	ErrOverflow = errors.New("plusone: total would overflow")
)

// Conditions that pass: the call was retried for as long as it had time. Repeat it later, by preference
// after Error.RetryAfter.
var (
	// ErrUnavailable: no server, or not its store, could be reached.
	ErrUnavailable = errors.New("plusone: unavailable")
	// ErrOverloaded: the server sheds load, its store is full, or it is ErrRateLimited.
	ErrOverloaded = errors.New("plusone: overloaded")
	// ErrRateLimited: the actor or the caller has changed as much as a policy of the server allows. Error.RetryAfter says
	// when there is room again; a call that has less time left than that is not repeated by the client.
	ErrRateLimited = errors.New("plusone: rate limit is reached")
)

// ErrClosed: the Client was closed before or during the call.
var ErrClosed = errors.New("plusone: client is closed")

// errorDomain is the domain of the ErrorInfo details that plusone's servers send.
const errorDomain = "plusone"

// Reasons that servers send, as far as the client acts on them.
const (
	reasonRequestIDReused  = "REQUEST_ID_REUSED"
	reasonRequestIDExpired = "REQUEST_ID_EXPIRED"
	reasonRequestIDEarly   = "REQUEST_ID_EARLY"
	reasonMissingScope     = "MISSING_SCOPE"
	reasonInvalidRequest   = "INVALID_REQUEST"
	reasonTotalOverflow    = "TOTAL_OVERFLOW"
	reasonOverloaded       = "OVERLOADED"
	reasonStoreFull        = "STORE_FULL"
	reasonStoreUnavailable = "STORE_UNAVAILABLE"
	reasonRateLimited      = "RATE_LIMITED"
	reasonGuardUnavailable = "GUARD_UNAVAILABLE"
)

// Error is what every failed call returns. Use errors.Is with the package's sentinels, or with
// context.Canceled and context.DeadlineExceeded, to tell failures apart.
type Error struct {
	// Method is the rpc's name, for example "Increment".
	Method string
	// Code, Reason and Message are of the last attempt. Reason is the server's, in UPPER_SNAKE_CASE, or
	// empty if the failure is not from a plusone server, but from the network for example.
	Code    codes.Code
	Reason  string
	Message string
	// Violations names the fields that make the request invalid, where the server says so.
	Violations []Violation
	// RetryAfter is how long the server asks to wait before the request is repeated, 0 if it does not say.
	RetryAfter time.Duration
	// RequestID is the id of the change, the caller's or the client's; it is empty for reads.
	RequestID string
	// Attempts is how often the call was tried, 0 if the client itself found the request invalid.
	Attempts int
	// InDoubt reports that this call may have counted the change. It says nothing of earlier calls with the
	// same id, and is never set for reads.
	InDoubt bool

	// retryInfo: the server said that a retry helps, if only after 0 s.
	retryInfo bool
	// causes are the last attempt's status and what ended the call.
	causes []error
}

// Violation is what is wrong with a field of a request.
type Violation struct {
	// Field is a path such as "entries[3].key", or empty for the request as a whole.
	Field       string
	Description string
}

// Error describes the failure. It holds no keys or actors, save what the server's message may hold.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plusone: %s: %s", e.Method, e.Code)
	if e.Reason != "" {
		b.WriteString(" (" + e.Reason + ")")
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	for _, v := range e.Violations {
		b.WriteString("; ")
		if v.Field != "" {
			b.WriteString(v.Field + ": ")
		}
		b.WriteString(v.Description)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, "; after %d attempts", e.Attempts)
	}
	if e.InDoubt {
		b.WriteString("; outcome is unknown")
	}
	return b.String()
}

// Is classifies the failure by the package's sentinels. Several may fit.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrInDoubt:
		return e.InDoubt
	case ErrInvalid:
		return e.Code == codes.InvalidArgument
	case ErrRequestIDReused:
		return e.Reason == reasonRequestIDReused
	case ErrRequestIDExpired:
		return e.Reason == reasonRequestIDExpired
	case ErrRequestIDEarly:
		return e.Reason == reasonRequestIDEarly
	case ErrUnauthenticated:
		return e.Code == codes.Unauthenticated
	case ErrPermissionDenied:
		return e.Code == codes.PermissionDenied
	case ErrOverflow:
		return e.Reason == reasonTotalOverflow
	case ErrUnavailable:
		return e.Code == codes.Unavailable
	case ErrOverloaded:
		return e.Code == codes.ResourceExhausted
	case ErrRateLimited:
		return e.Reason == reasonRateLimited
	case context.DeadlineExceeded:
		// A server may notice that the call's deadline has passed before the client does.
		return e.Code == codes.DeadlineExceeded
	default:
		return false
	}
}

// Unwrap returns the gRPC status of the last attempt and, if that is what ended the call, the context's error
// or ErrClosed.
func (e *Error) Unwrap() []error { return e.causes }

// newError reads the status of a failed attempt.
func newError(method, requestID string, err error) *Error {
	s := status.Convert(err)
	e := &Error{Method: method, RequestID: requestID, Code: s.Code(), Message: s.Message(), causes: []error{err}}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				e.Reason = d.GetReason()
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Violations = append(e.Violations, Violation{Field: v.GetField(), Description: v.GetDescription()})
			}
		case *errdetails.RetryInfo:
			e.retryInfo = true
			e.RetryAfter = max(0, d.GetRetryDelay().AsDuration())
		}
	}
	return e
}

// refuse makes the error for a request that cannot even be sent.
func refuse(method, requestID, field, description string) *Error {
	return &Error{
		Method: method, RequestID: requestID,
		Code: codes.InvalidArgument, Reason: reasonInvalidRequest, Message: "request cannot be sent",
		Violations: []Violation{{Field: field, Description: description}},
	}
}

// mayHaveCounted reports whether a change may have been counted by an attempt that was sent and failed so.
// It errs to the side of doubt: a failure with no known reason may be a proxy's.
func (e *Error) mayHaveCounted() bool {
	switch e.Code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.Unauthenticated:
		return false
	}
	switch e.Reason {
	case reasonStoreUnavailable, reasonOverloaded, reasonStoreFull, reasonRateLimited, reasonGuardUnavailable:
		return false
	}
	return true
}
