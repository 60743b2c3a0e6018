package counter

import "testing"

func TestSipHash(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{ // by another implementation, with the key 0
		"a": 0x407448d2b89b1813, "views/post:42": 0x77c9904fc6fbd295, "views/post:42345": 0x4baf775b316b2543,
		"12345678901234567890123456789012345678901": 0xdd5c8dca6ce8d7a8,
	} {
		if got := sipHash(&FingerprintKey{}, []byte(text)); got != want {
			t.Errorf("%q: %x, want %x", text, got, want)
		}
		for i := range 16 {
			key := FingerprintKey{}
			key[i] = 1
			if got := sipHash(&key, []byte(text)); got == want {
				t.Errorf("%q: byte %d of the key does not matter", text, i)
			}
		}
	}
}
