// Package ledgertest holds the suites that every ledger passes, and what its own tests share with them.
package ledgertest

import (
	"database/sql"
	"encoding/binary"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/plusone-dev/plusone/internal/counter"
)

var serial atomic.Uint64

// V7 makes a UUIDv7 of a moment, different at every call.
func V7(at time.Time) counter.RequestID {
	id := uuid.New()
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = 0x70 | id[6]&0x0f
	return counter.ParseRequestID(id.String())
}

// Opaque makes a request id that does not say when it was made, different at every call.
func Opaque() counter.RequestID { return counter.ParseRequestID("request-" + uuid.NewString()) }

// Key makes a key that no other call makes.
func Key() string {
	return "test/" + big.NewInt(int64(serial.Add(1))).Text(36) + "-" + uuid.NewString()
}

// Add is a change of one key.
func Add(key string, delta int64) counter.Change {
	return counter.Change{Entries: []counter.Entry{{Key: key, Delta: delta}}}
}

// With gives a change a request id.
func With(id counter.RequestID, change counter.Change) counter.Change {
	change.RequestID = id
	return change
}

// Once makes a change count once per actor and period.
func Once(actor string, per time.Duration, change counter.Change) counter.Change {
	change.Actor, change.OncePer = actor, per
	return change
}

// Audit fails the test unless the history of every counter that has one sums to its total. It reads the
// public views, whose columns are the same in every ledger.
func Audit(t testing.TB, db *sql.DB) {
	t.Helper()
	totals := readSums(t, db, `SELECT key, CAST(count AS text) FROM counter_totals`)
	history := readSums(t, db, `SELECT key, CAST(delta AS text) FROM counter_history`)
	for key, total := range totals {
		sum := history[key]
		if sum == nil {
			sum = new(big.Int)
		}
		if sum.Cmp(total) != 0 {
			t.Errorf("history of %q sums to %s, its total is %s", key, sum, total)
		}
		delete(history, key)
	}
	for key, sum := range history {
		t.Errorf("history of %q sums to %s, but it has no total", key, sum)
	}
}

func readSums(t testing.TB, db *sql.DB, query string) map[string]*big.Int {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	sums := make(map[string]*big.Int)
	for rows.Next() {
		var key, text string
		if err := rows.Scan(&key, &text); err != nil {
			t.Fatal(err)
		}
		value, ok := new(big.Int).SetString(text, 10)
		if !ok {
			t.Fatalf("%q is not a whole number", text)
		}
		if sums[key] == nil {
			sums[key] = new(big.Int)
		}
		sums[key].Add(sums[key], value)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return sums
}
