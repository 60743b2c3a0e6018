package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func mustExec(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := Start(t)
	url := s.URL
	conn := Connect(t, url)
	mustExec(t, conn, "CREATE TABLE kept AS SELECT 1 AS n")
	for range 2 {
		s.Kill()
		if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
			t.Error("a killed server answers")
		}
		if conn, err := pgx.Connect(t.Context(), url); err == nil {
			t.Errorf("a killed server accepts connections: %v", conn.Close(t.Context()))
		}
		s.Restart()
		conn = Connect(t, url)
		mustExec(t, conn, "INSERT INTO kept VALUES (2)")
	}
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d rows, want 3: %v", n, err)
	}
}

func TestStopHangsServer(t *testing.T) {
	t.Parallel()
	s := Start(t)
	idle, other := Connect(t, s.URL), Connect(t, s.URL)
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := idle.Exec(ctx, "SELECT 1"); err == nil || ctx.Err() == nil {
		t.Errorf("asking a stopped server: %v, want a timeout", err)
	}
	if conn, err := pgx.Connect(ctx, s.URL); err == nil {
		t.Errorf("a stopped server greets: %v", conn.Close(t.Context()))
	}
	s.Cont()
	mustExec(t, other, "SELECT 1")
	s.Stop() // The cleanup must cope.
}

func TestNewDatabase(t *testing.T) {
	t.Parallel()
	for range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			conn := Connect(t, NewDatabase(t))
			// Fails if the database is not a new one.
			mustExec(t, conn, "CREATE TABLE t (n int)")
			mustExec(t, conn, "INSERT INTO t VALUES (1)")
		})
	}
}

func TestDurability(t *testing.T) {
	t.Parallel()
	var own, common string
	conn := Connect(t, Start(t).URL)
	if err := conn.QueryRow(t.Context(), "SHOW fsync").Scan(&own); err != nil {
		t.Fatal(err)
	}
	conn = Connect(t, NewDatabase(t))
	if err := conn.QueryRow(t.Context(), "SHOW fsync").Scan(&common); err != nil {
		t.Fatal(err)
	}
	if own != "on" || common != "off" {
		t.Errorf("fsync is %s on a server of one's own, %s on the shared one", own, common)
	}
}
