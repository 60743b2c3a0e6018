package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"

	"go.yaml.in/yaml/v3"
)

// tokenPrefix lets scanners for leaked secrets recognise a token.
const tokenPrefix = "plusone_"

// NewToken draws a token of 256 random bits, and fills in its hash. A hash of so much randomness cannot be turned back, so
// it needs neither salt nor stretching, which are for passwords.
func NewToken(c *Caller) (token string) {
	var random [32]byte
	_, _ = rand.Read(random[:]) // it never fails
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(random[:])
	sum := sha256.Sum256([]byte(token))
	c.SHA256 = hex.EncodeToString(sum[:])
	return token
}

// Entry checks a caller and returns it as YAML for the file of callers.
func (c Caller) Entry() (string, error) {
	if err := checkCallerName(c.Name); err != nil {
		return "", err
	}
	empty := callers{byToken: map[digest]*caller{}, byCertificate: map[string]*caller{}}
	if err := empty.add(c); err != nil {
		return "", err
	}
	out, err := yaml.Marshal([]Caller{c})
	return string(out), err
}
