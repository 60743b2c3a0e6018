package storetest_test

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/flush"
	"github.com/plusone-dev/plusone/internal/counter"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/server"
	"github.com/plusone-dev/plusone/shard"
)

// zero asks for a fresh read.
var zero = durationpb.New(0)

// adminLedger is a ledger as servers of AdminService and audits use it.
type adminLedger interface {
	server.Reports
	server.AdminLedger
}

// adminData is a mode's data.
type adminData struct {
	// open makes another server's store, or returns the one there is.
	open   func(t *testing.T) (server.Store, server.AdminStore)
	ledger adminLedger
	audit  func(t *testing.T) flush.AuditLedger
	// sharded is nil in other modes.
	sharded *deployment
	// total sets the total of a key in the ledger that was never used.
	total func(t *testing.T, key string, total int64)
	// rows counts rows of a table.
	rows func(t *testing.T, table, column, value string) int
	// spread says that keys whose total is set are spread.
	spread bool
	// claims says that once-per claims are in the ledger.
	claims bool
}

// api is a server's.
type api struct {
	plusonev1.AdminServiceClient
	plusonev1.CounterServiceClient
	plusonev1.ReportServiceClient
}

func (d *adminData) serve(t *testing.T) api {
	store, admin := d.open(t)
	s, err := server.New(store, d.ledger, server.Config{Logger: quiet, Admin: &server.Admin{Store: admin, Ledger: d.ledger}})
	must(t, err)
	grpcListener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	httpListener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(grpcListener, httpListener) }()
	conn, err := grpc.NewClient(grpcListener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() {
		must(t, conn.Close())
		must(t, s.Shutdown(context.WithoutCancel(t.Context())))
		must(t, <-served)
	})
	return api{plusonev1.NewAdminServiceClient(conn), plusonev1.NewCounterServiceClient(conn), plusonev1.NewReportServiceClient(conn)}
}

var adminModes = map[string]func(t *testing.T) *adminData{
	"embedded": func(t *testing.T) *adminData {
		path := filepath.Join(t.TempDir(), "plusone.db")
		ledger, err := flush.OpenSQLite(t.Context(), path, flush.SQLiteOptions{DedupeWindow: dedupe})
		must(t, err)
		t.Cleanup(func() { _ = ledger.Close() })
		must(t, ledger.Migrate(t.Context()))
		must(t, ledger.EnsureSettings(t.Context(), flush.Settings{Mode: flush.ModeEmbedded, DedupeWindow: dedupe}))
		store := newDirect(t, ledger)
		return &adminData{
			open: func(*testing.T) (server.Store, server.AdminStore) { return store, ledger }, ledger: ledger,
			audit: func(t *testing.T) flush.AuditLedger {
				audit, err := flush.AuditSQLite(t.Context(), path, false, flush.SQLiteOptions{})
				must(t, err)
				t.Cleanup(func() { must(t, audit.Close()) })
				return audit
			},
			total: func(t *testing.T, key string, total int64) {
				_, err := store.Apply(t.Context(), counter.Change{Entries: []counter.Entry{{Key: key, Delta: total}}})
				must(t, err)
			},
			rows: func(t *testing.T, table, column, value string) (n int) {
				db, err := sql.Open("sqlite", path)
				must(t, err)
				defer func() { must(t, db.Close()) }()
				must(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table+` WHERE `+column+` = ?`, value).Scan(&n))
				return n
			},
			claims: true,
		}
	},
	"direct": func(t *testing.T) *adminData {
		url := pgtest.NewDatabase(t)
		ledger := openPostgres(t, url, flush.Settings{Mode: flush.ModeDirect, DedupeWindow: dedupe})
		return &adminData{
			open:   func(t *testing.T) (server.Store, server.AdminStore) { return newDirect(t, ledger), ledger },
			ledger: ledger, audit: func(*testing.T) flush.AuditLedger { return ledger }, claims: true,
			total: func(t *testing.T, key string, total int64) { setAccount(t, url, key, 0, total, 0) },
			rows:  func(t *testing.T, table, column, value string) int { return postgresRows(t, url, table, column, value) },
		}
	},
	"sharded": func(t *testing.T) *adminData { return shardedData(t, time.Time{}, redistest.Start(t).Addr) },
	"spread": func(t *testing.T) *adminData {
		return shardedData(t, time.Now().Add(-4*time.Minute), redistest.Start(t).Addr)
	},
	"cluster": func(t *testing.T) *adminData {
		return shardedData(t, time.Now().Add(-4*time.Minute), redistest.StartCluster(t, 3, 0).Addrs...)
	},
}

// shardedData drains by two workers. Keys whose total is set are spread since the marker.
func shardedData(t *testing.T, marker time.Time, addrs ...string) *adminData {
	d := newDeployment(t, addrs...)
	for range 2 {
		startWorker(t, d.scripts(t), d.ledger)
	}
	return d.adminData(marker)
}

func (d *deployment) adminData(marker time.Time) *adminData {
	return &adminData{
		open: func(t *testing.T) (server.Store, server.AdminStore) {
			store := d.store(t)
			return store, store
		},
		ledger: d.ledger, audit: func(*testing.T) flush.AuditLedger { return d.ledger }, sharded: d, spread: !marker.IsZero(),
		total: func(t *testing.T, key string, total int64) {
			spread := int64(0)
			if !marker.IsZero() {
				spread = marker.UnixMilli()
			}
			setAccount(t, d.postgresURL, key, shard.Home(key, shards), total, spread)
		},
		rows: func(t *testing.T, table, column, value string) int {
			return postgresRows(t, d.postgresURL, table, column, value)
		},
	}
}

// setAccount gives a key a total that was counted before there was a history.
func setAccount(t *testing.T, url, key string, shard int, total, spread int64) {
	conn := pgtest.Connect(t, url)
	_, err := conn.Exec(t.Context(), `INSERT INTO counters (key, shard, count, before_history, spread, updated_at) VALUES ($1, $2, $3::bigint, $3::bigint, $4, now())`,
		key, shard, total, spread)
	must(t, err)
}

func postgresRows(t *testing.T, url, table, column, value string) (n int) {
	conn := pgtest.Connect(t, url)
	must(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM `+table+` WHERE `+column+` = $1`, value).Scan(&n))
	return n
}

var adminStories = map[string]func(t *testing.T, d *adminData){
	"Delete":           testDelete,
	"DeleteNothing":    testDeleteNothing,
	"DeleteAtTheEdges": testDeleteAtTheEdges,
	"DeleteRace":       testDeleteRace,
	"Forget":           testForget,
	"Import":           testImport,
	"ImportIsOlder":    testImportIsOlder,
}

// adminClusterStories are those in which a cluster is another thing than a standalone Redis.
var adminClusterStories = map[string]bool{"Delete": true, "DeleteRace": true, "Forget": true}

// TestAdmin has the same stories in all modes.
func TestAdmin(t *testing.T) {
	t.Parallel()
	for name, open := range adminModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			t.Run("stories", func(t *testing.T) {
				for name, story := range adminStories {
					if d.sharded != nil && d.sharded.cluster && !adminClusterStories[name] {
						continue
					}
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						story(t, d)
					})
				}
			})
			d.check(t)
		})
	}
}

// check audits the ledger, and the bases that are cached, once all is drained.
func (d *adminData) check(t *testing.T) {
	t.Helper()
	if d.sharded != nil {
		d.sharded.drain(t)
	}
	ledger := d.audit(t)
	for after := ""; ; {
		page, err := ledger.Compare(t.Context(), after)
		must(t, err)
		if len(page.Differences) > 0 {
			t.Errorf("differences: %+v", page.Differences)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if d.sharded == nil {
		return
	}
	_, err := d.sharded.scripts(t).AuditBases(t.Context(), shard.BaseAudit{Ledger: d.sharded.ledger, Report: func(b shard.BaseDifference) error {
		t.Errorf("base differs: %+v", b)
		return nil
	}})
	must(t, err)
}

func (a *api) add(t *testing.T, key string, delta int64, id string) plusonev1.Outcome {
	t.Helper()
	resp, err := a.Increment(t.Context(), &plusonev1.IncrementRequest{Key: key, Delta: &delta, RequestId: id})
	must(t, err)
	return resp.Outcome
}

func (a *api) like(t *testing.T, key, actor string) {
	t.Helper()
	_, err := a.Like(t.Context(), &plusonev1.LikeRequest{Key: key, Actor: actor})
	must(t, err)
}

func (a *api) unlike(t *testing.T, key, actor string) {
	t.Helper()
	_, err := a.Unlike(t.Context(), &plusonev1.UnlikeRequest{Key: key, Actor: actor})
	must(t, err)
}

// holds expects what a fresh read says.
func (a *api) holds(t *testing.T, key string, count, likes int64) {
	t.Helper()
	resp, err := a.Get(t.Context(), &plusonev1.GetRequest{Key: key, MaxAge: zero})
	must(t, err)
	if resp.Count.Count != count || resp.Count.Likes != likes {
		t.Errorf("%s is %d with %d likes, want %d with %d", key, resp.Count.Count, resp.Count.Likes, count, likes)
	}
}

// delete repeats the call until it is done.
func (a *api) delete(t *testing.T, key, id string) *plusonev1.DeleteResponse {
	t.Helper()
	for {
		resp, err := a.Delete(t.Context(), &plusonev1.DeleteRequest{Key: key, RequestId: id})
		must(t, err)
		if resp.Done {
			return resp
		}
	}
}

func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

func testDelete(t *testing.T, d *adminData) {
	const key = "posts/deleted"
	d.total(t, key, 100)
	a, other := d.serve(t), d.serve(t)
	a.holds(t, key, 100, 0)
	early := []string{"opaque", storetest.NewID(time.Now()), storetest.NewID(time.Now().Add(-time.Minute))}
	for i, id := range early {
		a.add(t, key, int64(i+1), id)
	}
	for i := range 30 {
		a.like(t, key, fmt.Sprint("actor-", i))
	}
	a.unlike(t, key, "actor-7")
	a.holds(t, key, 135, 29)

	id := storetest.NewID(time.Now())
	resp := other.delete(t, key, id)
	if resp.Duplicate || resp.LikesRemoved != 29 {
		t.Errorf("answer is %v, want 29 likes removed", resp)
	}
	got, err := a.Get(t.Context(), &plusonev1.GetRequest{Key: key, MinAsOf: resp.AsOf})
	must(t, err)
	if got.Count.Count != 0 || got.Count.Likes != 0 {
		t.Errorf("a read of the write says %v", got.Count)
	}
	// Nothing comes back by late retries.
	for i, id := range early {
		if outcome := a.add(t, key, int64(i+1), id); outcome != plusonev1.Outcome_OUTCOME_DUPLICATE {
			t.Errorf("late retry of %s: %v", id, outcome)
		}
	}
	a.holds(t, key, 0, 0)
	if list, err := a.ListLikers(t.Context(), &plusonev1.ListLikersRequest{Key: key}); err != nil || len(list.Likers) > 0 {
		t.Errorf("likers are %v, %v", list, err)
	}
	if n := d.rows(t, "likes", "key", key); n != 0 {
		t.Errorf("%d rows of likes are left", n)
	}
	// What comes after it stays, whatever is repeated.
	a.add(t, key, 5, "")
	a.like(t, key, "actor-1")
	a.like(t, key, "someone-new")
	if resp := a.delete(t, key, id); !resp.Duplicate || resp.LikesRemoved != 0 {
		t.Errorf("the repetition is answered %v", resp)
	}
	other.holds(t, key, 7, 2)
	if resp := other.delete(t, key, "another"); resp.Duplicate || resp.LikesRemoved != 2 {
		t.Errorf("the next is answered %v", resp)
	}
	a.holds(t, key, 0, 0)
}

func testDeleteNothing(t *testing.T, d *adminData) {
	a := d.serve(t)
	a.delete(t, "posts/never", "nothing")
	a.holds(t, "posts/never", 0, 0)
	_, err := a.Delete(t.Context(), &plusonev1.DeleteRequest{Key: "posts/never", RequestId: storetest.NewID(time.Now().Add(-time.Hour))})
	if reason(err) != "REQUEST_ID_EXPIRED" {
		t.Errorf("an old id is answered %v", err)
	}
	if _, err = a.Delete(t.Context(), &plusonev1.DeleteRequest{Key: "posts/never"}); reason(err) != "INVALID_REQUEST" {
		t.Errorf("no id is answered %v", err)
	}
}

func testDeleteAtTheEdges(t *testing.T, d *adminData) {
	a := d.serve(t)
	for i, total := range []int64{math.MaxInt64, math.MinInt64, math.MaxInt64 - 1, math.MinInt64 + 1} {
		key := fmt.Sprint("edges/", i)
		d.total(t, key, total)
		a.holds(t, key, total, 0)
		if total < 0 && !d.spread { // so that likes have carried increments beyond the edge
			a.like(t, key, "first")
			a.like(t, key, "second")
			_, err := a.Import(t.Context(), &plusonev1.ImportRequest{RequestId: key, Totals: []*plusonev1.ImportTotal{{Key: key, Delta: -2}}})
			must(t, err)
			a.holds(t, key, total, 2)
		}
		a.delete(t, key, key)
		a.holds(t, key, 0, 0)
	}
}

// testDeleteRace deletes a counter that is being changed, by several calls at once.
func testDeleteRace(t *testing.T, d *adminData) {
	const key = "posts/raced"
	d.total(t, key, 1000)
	a, other := d.serve(t), d.serve(t)
	a.holds(t, key, 1000, 0)
	var during atomic.Int64 // issued
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				during.Add(1)
				if _, err := a.Increment(t.Context(), &plusonev1.IncrementRequest{Key: key, RequestId: storetest.NewID(time.Now())}); err != nil {
					t.Error(err)
				}
				if _, err := other.Like(t.Context(), &plusonev1.LikeRequest{Key: key, Actor: fmt.Sprintf("actor-%d-%d", w, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		a.like(t, key, fmt.Sprint("before-", i))
	}
	var deletes sync.WaitGroup
	for i := range 4 {
		deletes.Go(func() {
			server := []api{a, other}[i%2]
			server.delete(t, key, fmt.Sprint("race-", i/2)) // two of each
		})
	}
	deletes.Wait()
	close(stop)
	writers.Wait()
	a.add(t, key, 3, "")
	a.like(t, key, "before-3")
	resp, err := other.Get(t.Context(), &plusonev1.GetRequest{Key: key, MaxAge: zero})
	must(t, err)
	if n := resp.Count.Count - resp.Count.Likes; n < 3 || n > 3+during.Load() {
		t.Errorf("%d increments are left, want 3 to %d", n, 3+during.Load())
	}
	keys := []string{key}
	for i := range 20 {
		likes, err := other.BatchGetLikes(t.Context(), &plusonev1.BatchGetLikesRequest{Actor: fmt.Sprint("before-", i), Keys: keys})
		must(t, err)
		if liked := likes.Likes[0].Liked; liked != (i == 3) {
			t.Errorf("before-%d likes it: %v", i, liked)
		}
	}
	a.delete(t, key, "at-last")
	other.holds(t, key, 0, 0)
}

func testForget(t *testing.T, d *adminData) {
	const actor, friend = "users/forgotten", "users/friend"
	a, other := d.serve(t), d.serve(t)
	d.total(t, "pages/0", 10)
	a.holds(t, "pages/0", 10, 0)
	for i := range 40 {
		a.like(t, fmt.Sprint("pages/", i), actor)
	}
	for i := range 10 {
		a.unlike(t, fmt.Sprint("pages/", i), actor)
		other.like(t, fmt.Sprint("pages/", i), friend)
	}
	for _, who := range []string{actor, friend} {
		_, err := a.Increment(t.Context(), &plusonev1.IncrementRequest{Key: "pages/0", Actor: who, OncePer: durationpb.New(time.Hour)})
		must(t, err)
	}
	var removed, deleted int64
	for done := false; !done; {
		resp, err := other.ForgetActor(t.Context(), &plusonev1.ForgetActorRequest{Actor: actor})
		must(t, err)
		done, removed, deleted = resp.Done, removed+resp.LikesRemoved, deleted+resp.RowsDeleted
	}
	if removed != 30 {
		t.Errorf("%d likes removed, want 30", removed)
	}
	for _, table := range []string{"likes", "once_claims"} {
		if n := d.rows(t, table, "actor", actor); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	want := map[bool]int{true: 1}[d.claims]
	if n := d.rows(t, "once_claims", "actor", friend); n != want {
		t.Errorf("%d claims of another actor are left, want %d", n, want)
	}
	a.holds(t, "pages/0", 13, 1)
	a.holds(t, "pages/5", 1, 1)
	a.holds(t, "pages/30", 0, 0)
	a.like(t, "pages/30", actor)
	other.holds(t, "pages/30", 1, 1)
	if resp, err := other.ForgetActor(t.Context(), &plusonev1.ForgetActorRequest{Actor: actor}); err != nil || resp.LikesRemoved != 1 {
		t.Errorf("the next time: %v, %v", resp, err)
	}
}
