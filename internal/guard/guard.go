// Package guard asks somebody else whether an actor may change a counter: for example a service that knows how old an
// account is, or that can tell whether a CAPTCHA was solved.
package guard

import "context"

// TokenHeader is the metadata by which a caller hands on what the checker needs to know, such as the token of a CAPTCHA.
const TokenHeader = "plusone-guard-token"

// Question is what a guard is asked.
type Question struct {
	// Method is the RPC: Increment, Like or Unlike.
	Method string
	// Caller is the name of the identity that calls, empty if calls are not authenticated.
	Caller string
	// Actor is who acts.
	Actor string
	// Namespace is that of the key.
	Namespace string
	// Token is what the caller handed on, or empty.
	Token string
}

// Decision is what a guard answers.
type Decision struct {
	// Allowed says whether the change may count.
	Allowed bool
	// Reason of a refusal, in UPPER_SNAKE_CASE, for the caller.
	Reason string
}

// Guard decides whether a change may count. It is called concurrently. An error means that it cannot tell; whether that
// lets the change in is the guard's choice, which it has made already: an error refuses.
type Guard interface {
	Check(ctx context.Context, q Question) (Decision, error)
}
