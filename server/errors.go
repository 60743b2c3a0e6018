package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/plusone-dev/plusone/internal/counter"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "plusone"

// The reasons of ErrorInfo. They are part of the API.
const (
	reasonInvalidRequest   = "INVALID_REQUEST"
	reasonMinAsOfAhead     = "MIN_AS_OF_AHEAD"
	reasonRequestIDReused  = "REQUEST_ID_REUSED"
	reasonRequestIDExpired = "REQUEST_ID_EXPIRED"
	reasonRequestIDEarly   = "REQUEST_ID_EARLY"
	reasonTotalOverflow    = "TOTAL_OVERFLOW"
	reasonOverloaded       = "OVERLOADED"
	reasonStoreFull        = "STORE_FULL"
	reasonStoreUnavailable = "STORE_UNAVAILABLE"
	reasonOutcomeUnknown   = "OUTCOME_UNKNOWN"
	reasonStopping         = "STOPPING"
	reasonUnauthenticated  = "UNAUTHENTICATED"
	reasonMissingScope     = "MISSING_SCOPE"
	reasonNamespaceDenied  = "NAMESPACE_DENIED"
	reasonActorDenied      = "ACTOR_DENIED"
	reasonIncrementsDenied = "INCREMENTS_DENIED"
	reasonLikesDenied      = "LIKES_DENIED"
	reasonAnonymousDenied  = "ANONYMOUS_DENIED"
	reasonActorBlocked     = "ACTOR_BLOCKED"
	reasonRateLimited      = "RATE_LIMITED"
	reasonGuardDenied      = "GUARD_DENIED"
	reasonGuardUnavailable = "GUARD_UNAVAILABLE"
	reasonUnaudited        = "AUDIT_LOG_UNAVAILABLE"
	reasonInternal         = "INTERNAL"
	reasonCancelled        = "CANCELLED"
	reasonDeadlineExceeded = "DEADLINE_EXCEEDED"
)

// The delays that RetryInfo asks for.
const (
	retryOverloadedAfter     = 200 * time.Millisecond
	retryUnavailableAfter    = time.Second
	retryOutcomeUnknownAfter = 100 * time.Millisecond
	// A full store empties by flushing, which takes about a window.
	retryFullAfter = 5 * time.Second
)

// The statuses that never vary are built once.
var (
	statusReused = newStatus(codes.AlreadyExists, reasonRequestIDReused,
		"the request_id was used before, for something else")
	statusExpired = newStatus(codes.FailedPrecondition, reasonRequestIDExpired,
		"the request_id is too old to know whether it was counted")
	statusEarly = newStatus(codes.InvalidArgument, reasonRequestIDEarly,
		"request_id: is from more than 30 s in the future",
		badRequest("request_id", "is from more than 30 s in the future"))
	statusUndecodable = newStatus(codes.InvalidArgument, reasonInvalidRequest,
		"the request is not a message of its type, or has text that is not UTF-8")
	statusHealthRequestTooLarge = newStatus(codes.InvalidArgument, reasonInvalidRequest,
		"a request of the health service has at most "+strconv.Itoa(maxHealthBytes)+" bytes")
	statusOverflow = newStatus(codes.OutOfRange, reasonTotalOverflow,
		"the total would leave the range of int64")
	statusOverloaded = newStatus(codes.ResourceExhausted, reasonOverloaded,
		"too much is in flight", retryInfo(retryOverloadedAfter))
	statusFull = newStatus(codes.ResourceExhausted, reasonStoreFull,
		"the store is full", retryInfo(retryFullAfter))
	statusUnavailable = newStatus(codes.Unavailable, reasonStoreUnavailable,
		"the store cannot be reached", retryInfo(retryUnavailableAfter))
	statusUnknown = newStatus(codes.Unavailable, reasonOutcomeUnknown,
		"the change may or may not have been counted; repeat it with the same request_id",
		retryInfo(retryOutcomeUnknownAfter))
	statusStopping = newStatus(codes.Unavailable, reasonStopping,
		"the server is stopping", retryInfo(retryUnavailableAfter))
	statusUnaudited = newStatus(codes.Unavailable, reasonUnaudited,
		"the audit log cannot be written, and without it nothing is done", retryInfo(retryUnavailableAfter))
	// To repeat a change that has no request_id could count it twice, so there is no RetryInfo.
	statusUnknownForGood = newStatus(codes.Unavailable, reasonOutcomeUnknown,
		"the change may or may not have been counted; only a change with a request_id can be repeated safely")
	// A like is a state: to set it once more is safe, until the actor has thought better of it. The answer may then
	// be that nothing changed, though it was the first call that changed it.
	statusUnknownLike = newStatus(codes.Unavailable, reasonOutcomeUnknown,
		"the like may or may not have been set; repeat the call at once",
		retryInfo(retryOutcomeUnknownAfter))
	statusIncrementsDenied = newStatus(codes.PermissionDenied, reasonIncrementsDenied,
		"the policy of the namespace takes no increments")
	statusLikesDenied = newStatus(codes.PermissionDenied, reasonLikesDenied,
		"the policy of the namespace takes no likes")
	statusAnonymousDenied = newStatus(codes.PermissionDenied, reasonAnonymousDenied,
		"the policy of the namespace takes only changes that name their actor, and so no batches")
	statusActorBlocked     = newStatus(codes.PermissionDenied, reasonActorBlocked, "changes by this actor do not count")
	statusGuardUnavailable = newStatus(codes.Unavailable, reasonGuardUnavailable,
		"the guard that must allow the change cannot tell now", retryInfo(retryUnavailableAfter))
	statusCancelled = newStatus(codes.Canceled, reasonCancelled, "the caller cancelled the call")
	statusDeadline  = newStatus(codes.DeadlineExceeded, reasonDeadlineExceeded, "the caller's deadline has passed")
	// Whatever is wrong with credentials, the answer is the same.
	statusUnauthenticated = newStatus(codes.Unauthenticated, reasonUnauthenticated, "the call has no valid credentials")
	statusMissingScope    = newStatus(codes.PermissionDenied, reasonMissingScope,
		"the caller's credentials lack the scope that this method needs")
	statusNamespaceDenied = newStatus(codes.PermissionDenied, reasonNamespaceDenied,
		"the caller may not touch all namespaces that the request is about")
	statusActorDenied = newStatus(codes.PermissionDenied, reasonActorDenied, "the caller may not act for this actor")
	statusInternal    = newStatus(codes.Internal, reasonInternal, "internal error")
	statusAhead       = newStatus(codes.InvalidArgument, reasonMinAsOfAhead,
		"min_as_of: is more than 10 s ahead of the store's clock",
		badRequest("min_as_of", "is more than 10 s ahead of the store's clock"))
)

// errMinAsOfAhead refuses a read that would have to wait too long for the store's clock.
var errMinAsOfAhead = errors.New("min_as_of is too far ahead of the store's clock")

// errRateLimited is the cause of a refusal that is not worth a warning in the log.
var errRateLimited = errors.New("out of tokens")

// rateLimited is the status of a change that a limit refuses: nothing was changed, and a retry with the same request_id may
// come after the wait.
func rateLimited(limit string, wait time.Duration) *status.Status {
	return withMetadata(codes.ResourceExhausted, reasonRateLimited, "the rate limit of the "+limit+" is reached",
		map[string]string{"limit": limit}, retryInfo(wait))
}

// guardDenied is the status of a change that the guard refuses, for a reason of its own.
func guardDenied(reason string) *status.Status {
	return withMetadata(codes.PermissionDenied, reasonGuardDenied, "the guard refuses the change",
		map[string]string{"reason": strings.ToValidUTF8(reason, "")})
}

// storeStatuses are the statuses of the errors by which a store refuses.
var storeStatuses = []struct {
	err    error
	status *status.Status
}{
	// First, since a change can be in doubt because the store became unavailable half-way.
	{counter.ErrInDoubt, statusUnknown},
	{counter.ErrUnavailable, statusUnavailable},
	{counter.ErrOverloaded, statusOverloaded},
	{counter.ErrFull, statusFull},
	{counter.ErrRequestIDReused, statusReused},
	{counter.ErrRequestIDExpired, statusExpired},
	{counter.ErrRequestIDEarly, statusEarly},
	{counter.ErrOverflow, statusOverflow},
	{errMinAsOfAhead, statusAhead},
}

// rpcError is a status for the caller with its cause for the log. The cause's text never reaches the
// caller.
type rpcError struct {
	status *status.Status
	cause  error
}

func (e *rpcError) Error() string {
	if e.cause == nil {
		return e.status.String()
	}
	return e.status.String() + ": " + e.cause.Error()
}

// GRPCStatus is what gRPC sends.
func (e *rpcError) GRPCStatus() *status.Status { return e.status }

func (e *rpcError) Unwrap() error { return e.cause }

// changeError maps the error of a change. ctx is the caller's.
func changeError(ctx context.Context, err error, change *counter.Change) *rpcError {
	st := callerStatus(ctx)
	if st == nil {
		st = storeStatus(err)
	}
	if st == nil && isContextError(err) {
		// The server cut the store call off, so that it can answer before the caller gives up.
		st = statusUnknown
	}
	if st == nil {
		st = statusInternal
	}
	if st == statusUnknown {
		st = unknownStatus(change)
	}
	return &rpcError{status: st, cause: err}
}

// unknownStatus is the status of a change in doubt: it says what the caller can do about it.
func unknownStatus(change *counter.Change) *status.Status {
	switch {
	case !change.RequestID.IsZero():
		return statusUnknown
	case change.Like != counter.NoLike:
		return statusUnknownLike
	default:
		// Not even with a once-per claim: the repetition may fall into the next period.
		return statusUnknownForGood
	}
}

// readError maps the error of a read. ctx is the caller's.
func readError(ctx context.Context, err error) error {
	st := callerStatus(ctx)
	if st == nil {
		st = storeStatus(err)
	}
	// A read leaves nothing in doubt.
	if st == nil && isContextError(err) || st == statusUnknown {
		st = statusUnavailable
	}
	if st == nil {
		st = statusInternal
	}
	return &rpcError{status: st, cause: err}
}

// callerStatus is the status of a call that the caller has ended, else nil.
func callerStatus(ctx context.Context) *status.Status {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return statusDeadline
	default:
		return statusCancelled
	}
}

func storeStatus(err error) *status.Status {
	for i := range storeStatuses {
		if errors.Is(err, storeStatuses[i].err) {
			return storeStatuses[i].status
		}
	}
	return nil
}

func isContextError(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// invalidRequest refuses a request that breaks the contract.
func invalidRequest(reason string, list []*errdetails.BadRequest_FieldViolation) error {
	message := list[0].Field + ": " + list[0].Description
	if len(list) > 1 {
		message += fmt.Sprintf(" (and %d more)", len(list)-1)
	}
	return &rpcError{status: newStatus(codes.InvalidArgument, reason, message,
		&errdetails.BadRequest{FieldViolations: list})}
}

func badRequest(field, description string) *errdetails.BadRequest {
	return &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: field, Description: description},
	}}
}

func retryInfo(after time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(after)}
}

func newStatus(code codes.Code, reason, message string, details ...protoadapt.MessageV1) *status.Status {
	return withMetadata(code, reason, message, nil, details...)
}

// withMetadata is newStatus with more for the ErrorInfo.
func withMetadata(code codes.Code, reason, message string, metadata map[string]string, details ...protoadapt.MessageV1,
) *status.Status {
	details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: metadata})
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		// Only a detail that cannot be marshalled gets here: invalid UTF-8, which no text above has.
		return status.New(code, message)
	}
	return st
}
