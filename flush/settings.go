package flush

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/plusone-dev/plusone/internal/counter"
)

// Mode says how a deployment uses its ledger.
type Mode string

// The modes.
const (
	ModeEmbedded Mode = "embedded"
	ModeDirect   Mode = "direct"
	ModeSharded  Mode = "sharded"
)

// Settings are fixed when a ledger is first used: counts are laid out by them, and claims are kept by them,
// so a server with other settings would lose or double counts. Shards and Window are of sharded mode and 0
// otherwise.
type Settings struct {
	Mode         Mode
	Shards       int
	Window       time.Duration
	DedupeWindow time.Duration
}

// SettingsError reports a server whose settings are not those that the ledger was created with.
type SettingsError struct {
	// Name of the setting.
	Name string
	// Recorded is what the ledger was created with, Wanted what this server is set to.
	Recorded, Wanted string
}

func (e *SettingsError) Error() string {
	return fmt.Sprintf("the ledger was created with %s %s and cannot be used with %s %s: set %[1]s to %[2]s, or start with an empty database or schema",
		e.Name, e.Recorded, e.Name, e.Wanted)
}

// setting is a setting as it is recorded.
type setting struct{ name, value string }

// rows are the settings to record, in the order in which a mismatch is best reported.
func (s Settings) rows() []setting {
	rows := []setting{{"mode", string(s.Mode)}}
	if s.Mode == ModeSharded {
		rows = append(rows, setting{"shards", strconv.Itoa(s.Shards)}, setting{"window", s.Window.String()})
	}
	return append(rows, setting{"dedupe-window", s.DedupeWindow.String()})
}

// fingerprintKeyName is the name under which the key of fingerprints is recorded, which is drawn and not set.
const fingerprintKeyName = "fingerprint-key"

var errFingerprintKey = errors.New("the key of fingerprints in the settings of the ledger is damaged")

// record returns what a new ledger records: the settings, and a key of fingerprints.
func (s Settings) record() []setting {
	var key counter.FingerprintKey
	rand.Read(key[:])
	return append(s.rows(), setting{fingerprintKeyName, hex.EncodeToString(key[:])})
}

// use compares the settings with those recorded, and returns the key.
func (s Settings) use(recorded map[string]string) (*counter.FingerprintKey, error) {
	if err := s.check(recorded); err != nil {
		return nil, err
	}
	var key counter.FingerprintKey
	if text := recorded[fingerprintKeyName]; len(text) != hex.EncodedLen(len(key)) {
		return nil, errFingerprintKey
	} else if _, err := hex.Decode(key[:], []byte(text)); err != nil {
		return nil, errFingerprintKey
	}
	return &key, nil
}

// check compares the settings with those recorded.
func (s Settings) check(recorded map[string]string) error {
	for _, row := range s.rows() {
		if recorded[row.name] != row.value {
			return &SettingsError{Name: row.name, Recorded: recorded[row.name], Wanted: row.value}
		}
	}
	return nil
}
