package flush

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plusone-dev/plusone/internal/counter"
)

func TestMeaningOfPostgresErrors(t *testing.T) {
	t.Parallel()
	reply := func(severity, code string) error {
		return &pgconn.PgError{Severity: severity, SeverityUnlocalized: severity, Code: code}
	}
	lost := errors.New("unexpected EOF")
	for _, test := range []struct {
		name               string
		err                error
		before, committing error // nil: an error without a meaning
	}{
		{"disk full", reply("ERROR", "53100"), counter.ErrFull, counter.ErrFull},
		{"out of memory", reply("ERROR", "53200"), counter.ErrFull, counter.ErrFull},
		{"too many connections", reply("FATAL", "53300"), counter.ErrUnavailable, counter.ErrInDoubt},
		{"shutdown", reply("FATAL", "57P01"), counter.ErrUnavailable, counter.ErrInDoubt},
		{"panic", reply("PANIC", "XX000"), counter.ErrUnavailable, counter.ErrInDoubt},
		{"standby", reply("ERROR", "25006"), counter.ErrUnavailable, counter.ErrUnavailable},
		{"deadlock", reply("ERROR", "40P01"), counter.ErrUnavailable, counter.ErrUnavailable},
		{"canceled", reply("ERROR", "57014"), counter.ErrUnavailable, counter.ErrUnavailable},
		{"no table", reply("ERROR", "42P01"), nil, nil},
		{"lost connection", lost, counter.ErrUnavailable, counter.ErrInDoubt},
	} {
		for i, got := range []error{postgresError("test", test.err), commitError("test", test.err)} {
			want := []error{test.before, test.committing}[i]
			if !errors.Is(got, test.err) {
				t.Errorf("%s: the driver's error is lost: %v", test.name, got)
			}
			for _, meaning := range []error{counter.ErrFull, counter.ErrUnavailable, counter.ErrInDoubt} {
				if is := errors.Is(got, meaning); is != errors.Is(meaning, want) {
					t.Errorf("%s, committing %v: is %q: %v", test.name, i == 1, meaning, is)
				}
			}
		}
	}
}
