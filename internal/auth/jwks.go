package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/golang-jwt/jwt/v5"
)

// Limits of a set of keys. An RSA key that is longer costs too much for each token, one that is shorter can be broken.
const (
	maxJWKSBytes  = 1 << 20
	maxPublicKeys = 100
	minRSABits    = 2048
	maxRSABits    = 8192
)

func publicAlgorithms() []string {
	return []string{jwt.SigningMethodRS256.Name, jwt.SigningMethodES256.Name, jwt.SigningMethodEdDSA.Alg()}
}

// publicKey verifies signatures of one algorithm.
type publicKey struct {
	id        string
	algorithm string
	key       any // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// jwk is a key as RFC 7517 writes it, as far as it is a public one.
type jwk struct {
	Type       string   `json:"kty"`
	ID         string   `json:"kid"`
	Use        string   `json:"use"`
	Operations []string `json:"key_ops"`
	Algorithm  string   `json:"alg"`
	Curve      string   `json:"crv"`
	N, E, X, Y string
}

// parseJWKS reads a set of public keys. Keys for other purposes and of kinds that are not taken, shared secrets among them,
// are left out, as the RFC asks.
func parseJWKS(data []byte) ([]publicKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("it is not a JSON Web Key Set")
	}
	if n := len(set.Keys); n > maxPublicKeys {
		return nil, fmt.Errorf("it has %d keys, more than %d", n, maxPublicKeys)
	}
	var public []publicKey
	for i, raw := range set.Keys {
		var k jwk
		if err := json.Unmarshal(raw, &k); err != nil {
			return nil, fmt.Errorf("key %d is not a JSON Web Key", i+1)
		}
		algorithm, taken := k.kind()
		if !taken || !k.verifies(algorithm) {
			continue
		}
		key, err := k.public()
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		if slices.ContainsFunc(public, func(p publicKey) bool { return p.id == k.ID && p.algorithm == algorithm }) {
			return nil, fmt.Errorf("key %d: another key has the same kid", i+1)
		}
		public = append(public, publicKey{id: k.ID, algorithm: algorithm, key: key})
	}
	if len(public) == 0 {
		return nil, errors.New("it has no key for RS256, ES256 or EdDSA")
	}
	return public, nil
}

// verifies reports whether the key is meant to verify by the algorithm, as far as it says.
func (k *jwk) verifies(algorithm string) bool {
	return (k.Use == "" || k.Use == "sig") && (k.Algorithm == "" || k.Algorithm == algorithm) &&
		(k.Operations == nil || slices.Contains(k.Operations, "verify"))
}

// kind returns the algorithm of the key's kind, if that is taken.
func (k *jwk) kind() (algorithm string, taken bool) {
	switch {
	case k.Type == "RSA":
		return jwt.SigningMethodRS256.Name, true
	case k.Type == "EC" && k.Curve == "P-256":
		return jwt.SigningMethodES256.Name, true
	case k.Type == "OKP" && k.Curve == "Ed25519":
		return jwt.SigningMethodEdDSA.Alg(), true
	default:
		return "", false
	}
}

// public returns the key, of a kind that is taken.
func (k *jwk) public() (any, error) {
	switch k.Type {
	case "RSA":
		return k.rsa()
	case "EC":
		return k.p256()
	default:
		x, err := base64.RawURLEncoding.DecodeString(k.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return nil, errors.New("x is not an Ed25519 key")
		}
		return ed25519.PublicKey(x), nil
	}
}

func (k *jwk) rsa() (*rsa.PublicKey, error) {
	n, nErr := base64.RawURLEncoding.DecodeString(k.N)
	e, eErr := base64.RawURLEncoding.DecodeString(k.E)
	if nErr != nil || eErr != nil {
		return nil, errors.New("n or e is not base64url")
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("the RSA key has %d bits, and must have %d to %d", bits, minRSABits, maxRSABits)
	}
	if !exponent.IsInt64() || exponent.Int64() < 3 || exponent.Int64() > math.MaxInt32 || exponent.Bit(0) == 0 {
		return nil, errors.New("e is out of range")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func (k *jwk) p256() (*ecdsa.PublicKey, error) {
	const size = 32
	x, xErr := base64.RawURLEncoding.DecodeString(k.X)
	y, yErr := base64.RawURLEncoding.DecodeString(k.Y)
	if xErr != nil || yErr != nil || len(x) != size || len(y) != size {
		return nil, errors.New("x or y is not a coordinate of P-256")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, errors.New("the point is not on P-256")
	}
	return key, nil
}
