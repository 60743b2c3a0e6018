// Package ledgertest holds the suites that every ledger passes, and what its own tests share with them.
package ledgertest

import (
	"context"
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

// Like is a change that makes an actor like a key.
func Like(key, actor string) counter.Change {
	return counter.Change{Entries: []counter.Entry{{Key: key}}, Actor: actor, Like: counter.SetLiked}
}

// Unlike is a change that takes a like back.
func Unlike(key, actor string) counter.Change {
	return counter.Change{Entries: []counter.Entry{{Key: key}}, Actor: actor, Like: counter.SetUnliked}
}

// Lists are the lists of likes that every ledger serves: newest first, from behind a place in the list.
type Lists interface {
	ListLikers(ctx context.Context, key string, after counter.LikeCursor, limit int) ([]counter.Liked, error)
	ListLiked(ctx context.Context, actor string, after counter.LikeCursor, limit int) ([]counter.Liked, error)
}

// Audit fails the test unless every counter's history sums to its total, with one row a bucket, and its likes are as many
// as the rows that are liked. It reads what is public, whose columns are the same in every ledger.
func Audit(t testing.TB, db *sql.DB) {
	t.Helper()
	compareSums(t, db, "history",
		`SELECT key, CAST(count AS text) FROM counter_totals`, `SELECT key, CAST(delta AS text) FROM counter_history`)
	var doubled int
	err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM (SELECT 1 FROM counter_history GROUP BY key, bucket HAVING count(*) > 1) AS d`).
		Scan(&doubled)
	if err != nil || doubled != 0 {
		t.Errorf("%d buckets of history have several rows, %v", doubled, err)
	}
	compareSums(t, db, "likes",
		`SELECT key, CAST(likes AS text) FROM counter_totals`, `SELECT key, '1' FROM likes WHERE liked`)
}

// compareSums compares the totals of keys with the sums of their parts; a key without either has 0.
func compareSums(t testing.TB, db *sql.DB, name, totals, parts string) {
	t.Helper()
	want, sums := readSums(t, db, totals), readSums(t, db, parts)
	for key, total := range want {
		sum := sums[key]
		if sum == nil {
			sum = new(big.Int)
		}
		if sum.Cmp(total) != 0 {
			t.Errorf("%s of %q sums to %s, its total is %s", name, key, sum, total)
		}
		delete(sums, key)
	}
	for key, sum := range sums {
		t.Errorf("%s of %q sums to %s, but it has no total", name, key, sum)
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
