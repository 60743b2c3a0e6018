package identity

// RefusalError is why nobody could be told from what a call came with. Its text is a label of metrics and a word in the log; the
// caller never learns which one it is, as that would help whoever tries tokens out.
type RefusalError string

// The refusals.
const (
	// ErrNoCredentials: the call came with none.
	ErrNoCredentials RefusalError = "no_credentials"
	// ErrMalformed: what came cannot be a token, or there were several.
	ErrMalformed RefusalError = "malformed"
	// ErrUnknownToken: no caller has this token.
	ErrUnknownToken RefusalError = "unknown_token"
	// ErrUnknownCertificate: no caller has this certificate.
	ErrUnknownCertificate RefusalError = "unknown_certificate"
	// ErrExpired: its time is over.
	ErrExpired RefusalError = "expired"
	// ErrUnknownKey: no key of this name verifies tokens of this algorithm.
	ErrUnknownKey RefusalError = "unknown_key"
	// ErrWrongAlgorithm: the signature is of a kind that is not taken.
	ErrWrongAlgorithm RefusalError = "algorithm"
	// ErrWrongSignature: the signature is not that of the key.
	ErrWrongSignature RefusalError = "signature"
	// ErrWrongClaims: the token is for somebody else, by somebody else, not valid yet, or does not say what it must.
	ErrWrongClaims RefusalError = "claims"
)

// Refusals are all of them.
func Refusals() []RefusalError {
	return []RefusalError{
		ErrNoCredentials, ErrMalformed, ErrUnknownToken, ErrUnknownCertificate, ErrExpired, ErrUnknownKey, ErrWrongAlgorithm, ErrWrongSignature, ErrWrongClaims,
	}
}

func (r RefusalError) Error() string { return string(r) }
