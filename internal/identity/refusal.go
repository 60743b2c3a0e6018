package identity

// Refusal is why nobody could be told from what a call came with. Its text is a label of metrics and a word in the log; the
// caller never learns which one it is, as that would help whoever tries tokens out.
type Refusal string

// The refusals.
const (
	// NoCredentials: the call came with none.
	NoCredentials Refusal = "no_credentials"
	// Malformed: what came cannot be a token, or there were several.
	Malformed Refusal = "malformed"
	// UnknownToken: no caller has this token.
	UnknownToken Refusal = "unknown_token"
	// UnknownCertificate: no caller has this certificate.
	UnknownCertificate Refusal = "unknown_certificate"
	// Expired: its time is over.
	Expired Refusal = "expired"
	// UnknownKey: no key of this name verifies tokens of this algorithm.
	UnknownKey Refusal = "unknown_key"
	// WrongAlgorithm: the signature is of a kind that is not taken.
	WrongAlgorithm Refusal = "algorithm"
	// WrongSignature: the signature is not that of the key.
	WrongSignature Refusal = "signature"
	// WrongClaims: the token is for somebody else, by somebody else, not valid yet, or does not say what it must.
	WrongClaims Refusal = "claims"
)

// Refusals are all of them.
func Refusals() []Refusal {
	return []Refusal{
		NoCredentials, Malformed, UnknownToken, UnknownCertificate, Expired, UnknownKey, WrongAlgorithm, WrongSignature, WrongClaims,
	}
}

func (r Refusal) Error() string { return string(r) }
