package flush_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/ledgertest"
	"github.com/plusone-dev/plusone/internal/netfault"
	"github.com/plusone-dev/plusone/internal/pgtest"
)

func TestPostgresServersStartTogether(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t)
	var group sync.WaitGroup
	for range 5 {
		ledger := openPostgres(t, db)
		group.Go(func() {
			if err := ledger.Migrate(t.Context()); err != nil {
				t.Errorf("Migrate: %v", err)
				return
			}
			if err := ledger.EnsureSettings(t.Context(), settings(flush.ModeSharded)); err != nil {
				t.Errorf("EnsureSettings: %v", err)
			}
		})
	}
	group.Wait()
	bases, err := openPostgres(t, db).Bases(t.Context(), nil)
	if err != nil || len(bases.Watermarks) != shardCount {
		t.Errorf("watermarks %v, %v, want %d", bases.Watermarks, err, shardCount)
	}
}

func TestPostgresSettingsCannotChange(t *testing.T) {
	t.Parallel()
	ledger := openPostgres(t, newPostgres(t, flush.ModeSharded))
	for name, change := range map[string]func(*flush.Settings){
		"mode":          func(s *flush.Settings) { s.Mode = flush.ModeDirect },
		"shards":        func(s *flush.Settings) { s.Shards++ },
		"window":        func(s *flush.Settings) { s.Window = time.Minute },
		"dedupe-window": func(s *flush.Settings) { s.DedupeWindow++ },
	} {
		want := settings(flush.ModeSharded)
		change(&want)
		var mismatch *flush.SettingsError
		if err := ledger.EnsureSettings(t.Context(), want); !errors.As(err, &mismatch) || mismatch.Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := settings(flush.ModeSharded)
	want.Shards = 100
	if err := ledger.EnsureSettings(t.Context(), want); err == nil || !strings.Contains(err.Error(), "set shards to 3,") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	if err := ledger.EnsureSettings(t.Context(), settings(flush.ModeSharded)); err != nil {
		t.Errorf("the recorded settings: %v", err)
	}
	if bases, err := ledger.Bases(t.Context(), nil); err != nil || len(bases.Watermarks) != shardCount {
		t.Errorf("watermarks %v, %v: refused settings left shards", bases.Watermarks, err)
	}
}

func TestPostgresRacingSettings(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t)
	if err := openPostgres(t, db).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	const starters = 6
	errs := make([]error, starters)
	var group sync.WaitGroup
	for i := range starters {
		ledger := openPostgres(t, db)
		group.Go(func() {
			want := settings(flush.ModeSharded)
			want.Shards = i + 1
			errs[i] = ledger.EnsureSettings(t.Context(), want)
		})
	}
	group.Wait()
	winner := 0
	for i, err := range errs {
		var mismatch *flush.SettingsError
		switch {
		case err == nil && winner == 0:
			winner = i + 1
		case !errors.As(err, &mismatch):
			t.Errorf("starter %d: %v", i, err)
		}
	}
	if bases, err := openPostgres(t, db).Bases(t.Context(), nil); err != nil || len(bases.Watermarks) != winner {
		t.Errorf("%d shards, %v, want those of the winner, %d", len(bases.Watermarks), err, winner)
	}
}

// All servers of a ledger have one key of fingerprints, which no other ledger has.
func TestFingerprintKey(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t)
	var keys []counter.FingerprintKey
	for _, url := range []string{db, db, pgtest.NewDatabase(t)} {
		ledger := openPostgres(t, url)
		prepare(t, ledger, flush.ModeSharded)
		keys = append(keys, ledger.FingerprintKey())
	}
	if keys[0] != keys[1] || keys[0] == keys[2] || keys[0] == (counter.FingerprintKey{}) {
		t.Errorf("keys of a ledger, the same and another: %x", keys)
	}
	mustExec(t, openDB(t, "pgx", db), `UPDATE settings SET value = 'x' WHERE name = 'fingerprint-key'`)
	if err := openPostgres(t, db).EnsureSettings(t.Context(), settings(flush.ModeSharded)); err == nil {
		t.Error("a key that is damaged is used")
	}
}

// withSchema makes a schema, and the URL of connections that work in it.
func withSchema(t *testing.T, database, schema string) string {
	t.Helper()
	mustExec(t, openDB(t, "pgx", database), `CREATE SCHEMA `+schema)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("search_path", schema)
	u.RawQuery = query.Encode()
	return u.String()
}

func TestPostgresSchemasAreApart(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t)
	one, two := openPostgres(t, withSchema(t, db, "one")), openPostgres(t, withSchema(t, db, "two"))
	prepare(t, one, flush.ModeSharded)
	prepare(t, two, flush.ModeSharded)
	if _, err := one.Apply(t.Context(), window(0, 5, map[string]int64{"views/a": 1})); err != nil {
		t.Fatal(err)
	}
	bases, err := two.Bases(t.Context(), []string{"views/a"})
	if err != nil || len(bases.Rows) != 0 || bases.Watermarks[0] != 0 {
		t.Errorf("the other schema has %+v, %v", bases, err)
	}
	for _, ledger := range []*flush.Postgres{one, two} {
		lock, ok, err := ledger.LockShard(t.Context(), 0)
		if err != nil || !ok {
			t.Fatalf("LockShard: %v, %v", ok, err)
		}
		defer lock.Release()
	}
	var tables int
	row := openDB(t, "pgx", db).QueryRowContext(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`)
	if err := row.Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables in the schema public, %v", tables, err)
	}
}

func TestPostgresErrors(t *testing.T) {
	t.Parallel()
	empty := openPostgres(t, pgtest.NewDatabase(t))
	_, _, err := empty.Commit(t.Context(), []counter.Change{ledgertest.Add("views/a", 1)})
	if err == nil || errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt) {
		t.Errorf("Commit without tables: %v, want a plain error", err)
	}
	gone := openPostgres(t, "postgres://user:secret@127.0.0.1:1/none")
	for name, call := range map[string]func() error{
		"Ping":   func() error { return gone.Ping(t.Context()) },
		"Counts": func() error { _, err := gone.Counts(t.Context(), []string{"views/a"}); return err },
		"Commit": func() error {
			_, _, err := gone.Commit(t.Context(), []counter.Change{ledgertest.Add("views/a", 1)})
			return err
		},
		"Migrate":        func() error { return gone.Migrate(t.Context()) },
		"EnsureSettings": func() error { return gone.EnsureSettings(t.Context(), settings(flush.ModeDirect)) },
		"LockShard":      func() error { _, _, err := gone.LockShard(t.Context(), 0); return err },
	} {
		err := call()
		if !errors.Is(err, counter.ErrUnavailable) || errors.Is(err, counter.ErrInDoubt) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s without a server: %v, want ErrUnavailable", name, err)
		}
	}
	_, err = flush.OpenPostgres(t.Context(), "postgres://user:secret@host:port/x", flush.PostgresOptions{})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a bad URL: %v", err)
	}
}

// TestPostgresLostAnswers cuts connections around the commit, and compares what the error says with what
// became of the change.
func TestPostgresLostAnswers(t *testing.T) {
	t.Parallel()
	db := newPostgres(t, flush.ModeDirect)
	direct := openPostgres(t, db)
	const (
		plain  = iota
		withID // taken together with what it does
		once   // takes its claims first, as all that is not of new ids alone
	)
	const sums = "\x00\x00\x00\x04hour" // is sent with sums alone
	change := func(kind int, key string) counter.Change {
		switch change := ledgertest.Add(key, 1); kind {
		case plain:
			return change
		case withID:
			return ledgertest.With(ledgertest.Opaque(), change)
		default:
			return ledgertest.With(ledgertest.Opaque(), ledgertest.Once("someone", time.Hour, change))
		}
	}
	for _, test := range []struct {
		name     string
		kind     int
		cut      netfault.Cut
		at       string // the cut is at the statement with this
		want     error
		wantNot  error
		counted  int64
		repeated counter.Outcome
	}{
		{"answer to a plain commit", plain, netfault.CutAnswer, sums, counter.ErrInDoubt, counter.ErrUnavailable, 1, 0},
		{"answer to a commit of a new id", withID, netfault.CutAnswer, sums, counter.ErrInDoubt, counter.ErrUnavailable, 1, counter.Duplicate},
		{"commit of a new id", withID, netfault.CutRequest, sums, counter.ErrInDoubt, counter.ErrUnavailable, 0, counter.Applied},
		{"answer to a commit with claims", once, netfault.CutAnswer, sums, counter.ErrInDoubt, counter.ErrUnavailable, 1, counter.Duplicate},
		{"commit with claims", once, netfault.CutRequest, sums, counter.ErrInDoubt, counter.ErrUnavailable, 0, counter.Applied},
		{"claim", once, netfault.CutRequest, "someone", counter.ErrUnavailable, counter.ErrInDoubt, 0, counter.Applied},
		{"answer to the claim", once, netfault.CutAnswer, "someone", counter.ErrUnavailable, counter.ErrInDoubt, 0, counter.Applied},
	} {
		t.Run(test.name, func(t *testing.T) {
			proxy, url := netfault.StartURL(t, db)
			ledger := openPostgres(t, url)
			// Statements are prepared by the first use of a connection, and not sent again.
			for kind := range 3 {
				if _, _, err := ledger.Commit(t.Context(), []counter.Change{change(kind, ledgertest.Key())}); err != nil {
					t.Fatal(err)
				}
			}
			key := ledgertest.Key()
			change := []counter.Change{change(test.kind, key)}
			proxy.CutOn(test.at, test.cut)
			_, _, err := ledger.Commit(t.Context(), change)
			if !errors.Is(err, test.want) || errors.Is(err, test.wantNot) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if !proxy.Fired() {
				t.Error("the connection was not cut")
			}
			counts, err := direct.Counts(t.Context(), []string{key})
			if err != nil || counts[0].Value != test.counted {
				t.Errorf("count %+v, %v, want %d", counts, err, test.counted)
			}
			if test.repeated == 0 {
				return
			}
			verdicts, _, err := ledger.Commit(t.Context(), change)
			if err != nil || verdicts[0] != (flush.Verdict{Outcome: test.repeated}) {
				t.Errorf("repeated: %+v, %v, want outcome %d", verdicts, err, test.repeated)
			}
		})
	}
}

// TestPostgresKilled kills the server under load, several times. Callers repeat what was not acknowledged
// with the same id, so in the end every change is counted once.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	ledger := openPostgres(t, server.URL)
	prepare(t, ledger, flush.ModeDirect)
	store, err := flush.NewDirect(ledger, flush.DirectConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()

	const senders, kills, between = 8, 3, 200
	stop := make(chan struct{})
	acknowledged := make(chan struct{}, senders)
	sent := make([]int64, senders)
	var group sync.WaitGroup
	for s := range senders {
		group.Go(func() {
			for {
				change := ledgertest.With(ledgertest.V7(time.Now()), counter.Change{Entries: []counter.Entry{
					{Key: "views/all", Delta: 1}, {Key: fmt.Sprint("views/", s), Delta: 1},
				}})
				for {
					_, err := store.Apply(context.Background(), change)
					if err == nil {
						break
					}
					if !errors.Is(err, counter.ErrUnavailable) && !errors.Is(err, counter.ErrInDoubt) {
						t.Errorf("Apply: %v", err)
						return
					}
				}
				sent[s]++
				select {
				case acknowledged <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	for range kills {
		for range between {
			<-acknowledged
		}
		server.Kill()
		server.Restart()
	}
	for range between {
		<-acknowledged
	}
	close(stop)
	group.Wait()

	var all int64
	for s, n := range sent {
		all += n
		if r := store.Counts(t.Context(), []string{fmt.Sprint("views/", s)})[0]; r.Err != nil || r.Value != n {
			t.Errorf("sender %d: count %d, %v, want %d", s, r.Value, r.Err, n)
		}
	}
	if r := store.Counts(t.Context(), []string{"views/all"})[0]; r.Err != nil || r.Value != all {
		t.Errorf("count %d, %v, want %d", r.Value, r.Err, all)
	}
	ledgertest.Audit(t, openDB(t, "pgx", server.URL))
}

// TestPostgresLockIsLostWithItsConnection checks that a worker whose connection died keeps nobody out.
func TestPostgresLockIsLostWithItsConnection(t *testing.T) {
	t.Parallel()
	url := newPostgres(t, flush.ModeSharded)
	one, two := openPostgres(t, url), openPostgres(t, url)
	lost, ok, err := one.LockShard(t.Context(), 0)
	if err != nil || !ok {
		t.Fatalf("LockShard: %v, %v", ok, err)
	}
	db := openDB(t, "pgx", url)
	mustExec(t, db, `SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	again, ok, err := two.LockShard(t.Context(), 0)
	if err != nil || !ok {
		t.Fatalf("LockShard after the holder's connection died: %v, %v", ok, err)
	}
	if err := lost.Held(t.Context()); err == nil {
		t.Error("the lost lock is held")
	}
	lost.Release()
	if _, ok, err := one.LockShard(t.Context(), 0); err != nil || ok {
		t.Errorf("the release of a lost lock freed that of another: %v, %v", ok, err)
	}
	again.Release()
}

func BenchmarkPostgresCommit(b *testing.B) {
	for _, n := range []int{1, 300, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmarkCommit(b, openPostgres(b, newPostgres(b, flush.ModeDirect)), n)
		})
	}
}
