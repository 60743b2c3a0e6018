package flush

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// MaxRepair is how many keys one Repair takes on: it bounds the transaction and what is held in memory.
const MaxRepair = 100_000

// auditPageRows is about how many rows of each table one comparison reads: a fraction of a second. The rows of one
// key are always compared together.
const auditPageRows = 10_000

// afterAllKeys sorts behind every key: no key has the character.
const afterAllKeys = "\U0010FFFF"

// AuditLedger is a ledger whose totals are compared with the rows that they are made of, while servers and
// workers may be using it. A transaction changes both or neither, so in one snapshot they agree whatever goes on.
type AuditLedger interface {
	// CheckSettings reports a ledger whose schema is not that of this program, or that was created with other
	// settings (SettingsError). Other than EnsureSettings it writes nothing.
	CheckSettings(ctx context.Context, want Settings) error
	// Compare compares the keys behind after, the first few of them, in one snapshot.
	Compare(ctx context.Context, after string) (Comparison, error)
	// Repair compares the keys again, at most MaxRepair, and sets what differs to what the rows add up to, in one
	// transaction. A difference in likes goes to the row of the key's home, of the given number of shards.
	Repair(ctx context.Context, keys []string, shards int) (Repaired, error)
}

// Comparison is a page of an audit.
type Comparison struct {
	// Counters is how many keys were compared that have a total.
	Counters int
	// Differences are ordered by key.
	Differences []Difference
	// Next is what the next page is behind; empty if this was the last one.
	Next string
}

// Subject is what is compared.
type Subject string

// The subjects of a difference.
const (
	// OfCount: the count of a key on a shard, with what is known of before its history and the sum of its history.
	OfCount Subject = "count"
	// OfLikes: the likes of a key on all shards, with the number of its liked rows.
	OfLikes Subject = "likes"
)

// Difference is a total that is not what the rows add up to.
type Difference struct {
	Subject Subject
	Key     string
	// Shard is 0 where the ledger has none, and in a difference OfLikes.
	Shard int
	// Total and Rows are decimals, since sums may leave int64. Total is empty if the key has no row in counters.
	Total, Rows string
}

// Repaired is what Repair did.
type Repaired struct {
	// Totals were set from Total to Rows, as the transaction found them.
	Totals []Difference
	// Impossible are those whose rows add up to what no total can hold. They were left as they are.
	Impossible []Difference
}

var errNoLedger = errors.New("there is no ledger yet: a server makes it when it starts, or plusone migrate")

// checkSchema compares the version of a ledger's schema with the newest migration.
func checkSchema(version int64, folder string) error {
	files, err := fs.Glob(migrations, "migrations/"+folder+"/*.sql")
	if err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	newest := int64(0)
	for _, file := range files {
		number, _, _ := strings.Cut(strings.TrimPrefix(file, "migrations/"+folder+"/"), "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return fmt.Errorf("check schema: %w", err)
		}
		newest = max(newest, n)
	}
	switch {
	case version == 0:
		return errNoLedger
	case version < newest:
		return fmt.Errorf("the ledger's schema is version %d and this program needs %d: run plusone migrate first", version, newest)
	case version > newest:
		return fmt.Errorf("the ledger's schema is version %d and this program knows %d: use the program that migrated it", version, newest)
	}
	return nil
}
