package checker

import (
	"errors"
	"regexp"
	"time"

	guardv1 "github.com/plusone-dev/plusone/api/plusone/guard/v1"
	"github.com/plusone-dev/plusone/internal/guard"
)

// maxAnswerBytes bounds the answer of a checker.
const maxAnswerBytes = 4096

// answer is what a checker said.
type answer struct {
	allowed bool
	reason  string        // of a refusal, may be empty
	ttl     time.Duration // how long it may be kept, or negative if the checker does not say
}

var errNoDecision = errors.New("the answer does not say whether the change is allowed")

// validReason is that of ErrorInfo.
var validReason = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,61}[A-Z0-9]$`)

// answerOf returns what a response says. A refusal is one whatever its reason and time.
func answerOf(resp *guardv1.CheckResponse) (answer, error) {
	if resp.Allowed == nil {
		return answer{}, errNoDecision
	}
	a := answer{allowed: *resp.Allowed, ttl: -1}
	if !a.allowed && validReason.MatchString(resp.Reason) {
		a.reason = resp.Reason
	}
	if ttl := resp.Ttl; ttl != nil {
		a.ttl = 0
		if ttl.IsValid() {
			a.ttl = max(0, ttl.AsDuration())
		}
	}
	return a, nil
}

// validToken reports whether a token can be handed on.
func validToken(token string) bool {
	if len(token) > guard.MaxTokenBytes {
		return false
	}
	for i := range len(token) {
		if token[i] < ' ' || token[i] > '~' {
			return false
		}
	}
	return true
}
