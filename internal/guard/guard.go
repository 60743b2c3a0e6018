// Package guard asks somebody else whether an actor may change a counter: for example a service that knows how old an
// account is, or that can tell whether a CAPTCHA was solved.
package guard

import (
	"context"
	"errors"
)

// TokenHeader is the metadata by which a caller hands on what the checker needs to know, such as the token of a CAPTCHA.
const TokenHeader = "plusone-guard-token"

// MaxTokenBytes bounds a token.
const MaxTokenBytes = 4096

// ReasonTokenInvalid is the reason for which a token is refused that is too long, or anything but printable ASCII.
const ReasonTokenInvalid = "TOKEN_INVALID"

// ErrUnavailable is the error of a guard that cannot tell, and for that lets nothing in.
var ErrUnavailable = errors.New("the guard cannot tell")

// Question is what a guard is asked. Two that are equal have the same answer.
type Question struct {
	// Method is the RPC: Increment, Like or Unlike.
	Method string
	// Caller is the name of the identity that calls, empty if calls are not authenticated.
	Caller string
	// Actor is who acts.
	Actor string
	// Namespace is that of the key.
	Namespace string
	// Token is what the caller handed on, or empty. It may be anything: a guard refuses what it cannot pass on.
	Token string
}

// Decision is what a guard answers.
type Decision struct {
	// Allowed says whether the change may count.
	Allowed bool
	// Reason of a refusal, in UPPER_SNAKE_CASE, for the caller. It is empty if none was given.
	Reason string
}

// Guard decides whether a change may count. It is called concurrently. An error means that it cannot tell, and refuses:
// whether a change is let in then is the guard's choice, which it has made already. It is ErrUnavailable, or that of
// ctx if that ended first.
type Guard interface {
	Check(ctx context.Context, q Question) (Decision, error)
}
