package bench_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/storetest"
	"github.com/plusone-dev/plusone/shard"
)

// deletedLikes is how many likes a counter has that is deleted, by Postgres alone.
const deletedLikes = 1_000_000

// TestDelete measures a Delete of a counter with many likes, and what it does to increments of other counters.
func TestDelete(t *testing.T) {
	const key = "likes/viral"
	for _, mode := range []string{"direct", "sharded"} {
		t.Run(mode, func(t *testing.T) {
			url, args, home := pgtest.NewDatabase(t), []string{}, 0
			if mode == "sharded" {
				args, home = append(args, "--redis-url="+redistest.Start(t).URL()), shard.Home(key, 8)
			}
			i := plusonetest.Start(t, build(t), append(args, "--postgres-url="+url)...)
			likes := scaled(deletedLikes)
			conn := pgtest.Connect(t, url)
			_, err := conn.Exec(t.Context(), `INSERT INTO likes (key, actor, liked, at, was)
				SELECT $1, 'user:' || n, true, now() - n * interval '1 second', false FROM generate_series(1, $2::int) AS n`, key, likes)
			if err == nil {
				_, err = conn.Exec(t.Context(), `INSERT INTO counters (key, shard, count, likes, before_history, updated_at)
					VALUES ($1, $2, $3::bigint, $3::bigint, $3::bigint, now())`, key, home, likes)
			}
			if err != nil {
				t.Fatal(err)
			}
			others := startOutageLoad(t, i)
			wait(*warmFlag)
			others.reset()
			wait(*secondsFlag)
			before, resident := others.p99(), i.Metric("process_resident_memory_bytes")
			others.reset()
			took, calls := deleteAll(t, i, key)
			during := others.p99()
			others.stop()
			table.add(row{
				work: fmt.Sprintf("%s mode, Delete of a counter with %d likes", mode, likes), target: "others are not held up",
				ratios: fmt.Sprintf("%.1f s in %d calls; resident %.0f MiB before, %.0f MiB after", took.Seconds(), calls,
					resident/(1<<20), i.Metric("process_resident_memory_bytes")/(1<<20)),
				latency: fmt.Sprintf("p99 of Increment of others %v before, %v meanwhile", before.Round(10*time.Microsecond),
					during.Round(10*time.Microsecond)),
			})
		})
	}
}

// deleteAll repeats a Delete until it is done.
func deleteAll(t *testing.T, i *plusonetest.Instance, key string) (took time.Duration, calls int) {
	t.Helper()
	conn, err := grpc.NewClient(i.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	id, began := storetest.NewID(time.Now()), time.Now()
	for {
		calls++
		resp, err := plusonev1.NewAdminServiceClient(conn).Delete(t.Context(), &plusonev1.DeleteRequest{Key: key, RequestId: id})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Done {
			break
		}
	}
	got, err := plusonev1.NewCounterServiceClient(conn).Get(t.Context(), &plusonev1.GetRequest{Key: key, MaxAge: durationpb.New(0)})
	if err != nil || got.Count.Count != 0 || got.Count.Likes != 0 {
		t.Fatalf("after the Delete: %v, %v", got, err)
	}
	return time.Since(began), calls
}
